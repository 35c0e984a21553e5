//! The store in memory.

use super::*;

#[tokio::test]
async fn in_memory_committed_means_durable_and_held_means_lost() {
    let store = MemStore::new();
    store.commit(put("a", "1")).await.unwrap();
    store.hold();
    let mut held = store.commit(put("b", "2"));
    assert!(poll_once(held.as_mut()).is_none());
    assert_eq!(store.get(Tree::Rec, b"b").unwrap(), None);
    let after = store.crash();
    assert!(matches!(held.await, Err(StoreError::Unanswered { .. })));
    assert_eq!(all(&after, Tree::Rec), BTreeMap::from([("a".into(), "1".into())]));
    assert!(matches!(store.commit(put("c", "3")).await, Err(StoreError::Closed { .. })));

    after.hold();
    let held = after.commit(put("b", "2"));
    after.release();
    held.await.unwrap();
    assert_eq!(all(&after, Tree::Rec).len(), 2);
}

#[tokio::test]
async fn faults_in_memory_are_those_of_the_disk() {
    let store = MemStore::new();
    store.commit(put("a", "1")).await.unwrap();
    store.fail_next(1);
    assert!(matches!(store.commit(put("a", "2")).await, Err(StoreError::Failed { .. })));
    store.set_full(true);
    assert!(matches!(store.commit(put("a", "2")).await, Err(StoreError::NoSpace { .. })));
    assert!(!store.health().writable);
    store.set_full(false);
    assert_eq!(store.get(Tree::Rec, b"a").unwrap().unwrap(), b"1");
    store.make_unreadable(Tree::Rec, b"a");
    assert!(matches!(store.get(Tree::Rec, b"a"), Err(StoreError::Undecryptable { .. })));
    assert_eq!(store.rotate().await.unwrap().to, 2);
}
