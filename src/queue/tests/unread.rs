//! Records that cannot be read.

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Every write of the store cannot be unsealed: its key is lost.
fn lose(store: &MemStore, ids: &[WriteId]) {
    for id in ids {
        store.make_unreadable(Tree::Rec, id.as_bytes());
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_that_cannot_be_read_keeps_its_key_and_its_twin() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    let with = [("idempotency-key", "k")];
    let id = rig.post("/bookings", "{}", &with).await.id();
    let store = rig.store.crash();
    lose(&store, &[id]);
    let rig = Rig::on(store, Arc::default(), Settings::default(), rig.clock).await;
    let again = rig.post("/bookings", "{}", &with).await;
    assert_eq!((again.status, again.id()), (504, id), "its key is not free");
    let twin = rig.post("/bookings", "{}", &[]).await;
    assert_eq!((twin.status, twin.id()), (504, id), "nor is its twin");
    let other = rig.post("/bookings", "{\"b\":1}", &with).await;
    assert!(matches!(other.error, Some(ProxyError::KeyReused)), "{other:?}");
    assert_eq!(rig.post("/bookings", "{\"b\":1}", &[]).await.status, 200, "others go on");
    let ticket = rig.queue.get(id).await.unwrap();
    assert_eq!((ticket.state, ticket.reason), (State::Dead, Some(record::Reason::Undecryptable)));
    tokio::time::sleep(2 * DAY).await;
    assert_eq!(rig.post("/bookings", "{}", &with).await.status, 504);
    assert_eq!(rig.world.bodies(), ["{\"b\":1}"]);
    // With the right key it is what it was.
    let store = rig.store.crash();
    store.make_readable();
    let rig = Rig::on(store, Arc::default(), Settings::default(), first_clock()).await;
    rig.until(id, State::Done).await;
    assert_eq!(rig.world.bodies(), ["{}"]);
}

#[tokio::test(start_paused = true)]
async fn nothing_overtakes_a_record_that_cannot_be_read() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    let old = rig.patch("/shipments/1", "old", &[]).await.id();
    let behind = rig.patch("/shipments/1", "behind", &[]).await.id();
    let store = rig.store.crash();
    lose(&store, &[old]);
    let rig = Rig::on(store, Arc::default(), Settings::default(), rig.clock).await;
    let new = rig.patch("/shipments/1", "new", &[]).await;
    assert_eq!(new.status, 202);
    let never = rig.patch("/shipments/1", "never", &[("seawall-queue", "never")]).await;
    assert_eq!((never.status, never.id()), (409, old));
    let request = rig.request(Method::DELETE, "/x", "", &[("seawall-order-key", "shipments/1")]);
    assert_eq!(Sent::of(rig.send(request).await).await.status, 409);
    assert_eq!(rig.patch("/shipments/2", "other", &[]).await.status, 200);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(rig.world.bodies(), ["other"]);
    assert_eq!(rig.state(behind), Some(State::Pending));
    // With the right key, all go in their order.
    let store = rig.store.crash();
    store.make_readable();
    let rig = Rig::on(store, Arc::default(), Settings::default(), rig.clock).await;
    rig.until(new.id(), State::Done).await;
    assert_eq!(rig.world.bodies(), ["old", "behind", "new"]);
}

#[tokio::test(start_paused = true)]
async fn what_was_overtaken_while_it_could_not_be_read_is_not_sent_by_itself() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    let old = rig.patch("/shipments/1", "old", &[]).await.id();
    let store = rig.store.crash();
    lose(&store, &[old]);
    let rig = Rig::on(store, Arc::default(), Settings::default(), rig.clock).await;
    let new = rig.patch("/shipments/1", "new", &[]).await.id();
    assert!(rig.queue.cancel(old, "ann", "x").await.is_err());
    assert!(rig.queue.resolve(old, Verdict::Drop, None, "ann", "x").await.is_err());
    rig.queue.release(old, "ann", "the key is lost").await.unwrap();
    rig.until(new, State::Done).await;
    // A further start knows it.
    let store = rig.store.crash();
    let rig = Rig::on(store, rig.world.clone(), Settings::default(), rig.clock).await;
    assert_eq!(rig.patch("/shipments/1", "newer", &[]).await.status, 200);
    let store = rig.store.crash();
    store.make_readable();
    let rig = Rig::on(store, rig.world.clone(), Settings::default(), rig.clock).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(rig.world.bodies(), ["new", "newer"], "an older value over a newer one");
    let ticket = rig.queue.get(old).await.unwrap();
    assert!(ticket.is_held && ticket.maybe_applied);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_in_an_older_store_is_looked_at_when_it_can() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    let patch = rig.patch("/shipments/1", "old", &[]).await.id();
    let store = rig.store.crash();
    lose(&store, &[patch]);
    let rig = Rig::open(store, Arc::default(), Settings::default(), rig.clock, true).await;
    rig.settle().await;
    // Another start without the key changes nothing: it holds its order up.
    let rig = Rig::on(rig.store.crash(), Arc::default(), Settings::default(), rig.clock).await;
    assert_eq!(rig.patch("/shipments/1", "new", &[]).await.status, 202);
    let store = rig.store.crash();
    store.make_readable();
    let rig = Rig::on(store, Arc::default(), Settings::default(), rig.clock).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(rig.world.arrivals().is_empty());
    assert!(rig.queue.get(patch).await.unwrap().is_held);
    // It was looked at: the next start knows that, and nothing else of it is left.
    let rig = Rig::on(rig.store.crash(), Arc::default(), Settings::default(), rig.clock).await;
    rig.queue.release(patch, "ann", "nothing newer").await.unwrap();
    rig.until(patch, State::Done).await;
    rig.eventually("the newer one goes too", || rig.world.bodies() == ["old", "new"]).await;
    let rig = Rig::on(rig.store.crash(), rig.world.clone(), Settings::default(), rig.clock).await;
    assert_eq!(rig.state(patch), Some(State::Done));
}

#[tokio::test(start_paused = true)]
async fn an_older_builds_record_that_cannot_be_read_is_looked_at_when_it_can() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    let id = rig.post("/bookings", "{}", &[]).await.id();
    let store = rig.store.crash();
    lose(&store, &[id]);
    // That build wrote no mark: what it stands for is not known.
    let mut marks = Vec::new();
    store
        .scan(Tree::Idem, &[], None, &mut |key, _| {
            marks.push(key.to_vec());
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    let mut batch = crate::store::Batch::new();
    for mark in marks {
        batch.delete(Tree::Idem, mark);
    }
    store.commit(batch).await.unwrap();
    let rig = Rig::on(store, Arc::default(), Settings::default(), rig.clock).await;
    assert_eq!(rig.post("/bookings", "{}", &[]).await.status, 200);
    let store = rig.store.crash();
    store.make_readable();
    let rig = Rig::on(store, Arc::default(), Settings::default(), rig.clock).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(rig.state(id), Some(State::Unknown), "a person decides: it may be there twice");
    assert!(rig.world.arrivals().is_empty());
}

#[tokio::test]
async fn with_its_key_lost_the_real_store_still_tells_the_marks() {
    use crate::store::{Keys, Options, SledStore};
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    let id = rig.post("/bookings", "{}", &[]).await.id();
    let record = rig.queue.with(|book| book.get(id).unwrap().record.clone());
    let dir = tempfile::tempdir().unwrap();
    let options = || Options::new(std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000));
    let (store, _) = SledStore::open(dir.path(), &Keys::from_bytes([7; 32], [8; 32]), options()).unwrap();
    let with = journal::With { body: Some(b"{}"), ..journal::With::default() };
    store.commit(journal::Journal::batch(&record, &with)).await.unwrap();
    store.close().await;
    drop(store);
    let (store, _) = SledStore::open(dir.path(), &Keys::from_bytes([9; 32], [8; 32]), options()).unwrap();
    let store: Arc<dyn Store> = Arc::new(store);
    let loaded = journal::Journal::new(store.clone()).load().unwrap();
    assert!(loaded.records.is_empty() && loaded.unreadable.len() == 1);
    assert_eq!(loaded.marks, [mark::Mark::of(&record)]);
    store.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_younger_record_that_cannot_be_read_keeps_the_key_that_an_older_one_had() {
    let rig = Rig::new().await;
    rig.world.always(Some(Act::Refuse(open())));
    let with = [("idempotency-key", "k")];
    let first = rig.post("/bookings", "{}", &with).await.id();
    rig.queue.cancel(first, "ann", "x").await.unwrap();
    let second = rig.post("/bookings", "{}", &with).await.id();
    assert_ne!(first, second);
    let store = rig.store.crash();
    lose(&store, &[second]);
    let rig = Rig::on(store, Arc::default(), Settings::default(), rig.clock).await;
    let again = rig.post("/bookings", "{}", &with).await;
    assert_eq!((again.status, again.id()), (504, second));
    assert!(rig.world.bodies().is_empty());
}
