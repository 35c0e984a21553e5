//! Sealing.

use super::*;

#[tokio::test]
async fn nothing_readable_is_on_disk() {
    const SECRET: &str = "a very private shipment reference";
    let dir = tempfile::tempdir().unwrap();
    let (store, _, _) = open(dir.path());
    let mut batch = Batch::new();
    for tree in Tree::ALL {
        batch.put(tree, "k", SECRET);
    }
    store.commit(batch).await.unwrap();
    store.rotate().await.unwrap();
    store.close().await;
    let db = std::fs::read(dir.path().join("epoch-2/db")).unwrap();
    assert!(memchr::memmem::find(&db, SECRET.as_bytes()).is_none());
    let key = std::fs::read(dir.path().join("key")).unwrap();
    assert!(memchr::memmem::find(&key, &[7; 32]).is_none());
}

#[tokio::test]
async fn with_the_key_lost_the_store_starts_and_tells_each_value_and_takes_new_ones() {
    let dir = tempfile::tempdir().unwrap();
    made(dir.path()).await;
    let other = Keys::from_bytes([9; 32], [8; 32]);
    let (store, report) = SledStore::open(dir.path(), &other, options(&Probe::new())).unwrap();
    assert!(matches!(report.alarms[..], [Alarm::KeyLost { .. }]), "{report:?}");
    store.commit(put("b", "2")).await.unwrap();
    let mut seen = Vec::new();
    store
        .scan(Tree::Rec, b"", None, &mut |key, value| {
            seen.push((key.to_vec(), value.is_ok()));
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(seen, [(b"a".to_vec(), false), (b"b".to_vec(), true)]);
    let error = store.get(Tree::Rec, b"a").unwrap_err();
    assert!(
        matches!(&error, StoreError::Undecryptable { tree: Tree::Rec, key, .. } if key == b"a"),
        "{error}"
    );
    assert_eq!(store.health().undecryptable, 2);
    store.close().await;
}

#[tokio::test]
async fn a_rotated_wrapping_key_opens_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, _) = open(dir.path());
    store.commit(put("a", "1")).await.unwrap();
    let other = Keys::from_bytes([9; 32], [8; 32]);
    store.rotate_wrapping(&other).unwrap();
    store.commit(put("b", "2")).await.unwrap();
    store.close().await;
    drop(store);
    let (store, report) = SledStore::open(dir.path(), &other, options(&Probe::new())).unwrap();
    assert!(report.alarms.is_empty(), "{report:?}");
    assert_eq!(all(&store, Tree::Rec).len(), 2);
    store.close().await;
}
