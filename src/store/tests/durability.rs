//! Durability, and what a store takes and shows.

use super::*;

#[tokio::test]
async fn no_answer_before_the_sync_and_no_sync_before_the_write() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, probe) = open(dir.path());
    store.commit(put("a", "1")).await.unwrap();
    assert_eq!(probe.take(), [Step::Write, Step::Flush, Step::Sync, Step::Answer]);
    // While the sync hangs there is no answer.
    let (enter, entered) = std::sync::mpsc::channel();
    let (leave, left) = std::sync::mpsc::channel::<()>();
    let left = Mutex::new(left);
    probe.act(move |step, _| {
        if step == Step::Sync {
            let _ = enter.send(());
            let _ = left.lock().unwrap().recv();
        }
        Ok(())
    });
    let mut commit = store.commit(put("b", "2"));
    entered.recv_timeout(PATIENCE).unwrap();
    assert!(poll_once(commit.as_mut()).is_none(), "answered before the sync");
    drop(leave);
    commit.await.unwrap();
    store.close().await;
}

#[tokio::test]
async fn all_that_was_acknowledged_is_there_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let live = dir.path().join("live");
    let (store, report, _) = open(&live);
    assert!(report.is_new && report.alarms.is_empty(), "{report:?}");
    let store = Arc::new(store);
    let mut tasks = Vec::new();
    for task in 0..16 {
        let store = store.clone();
        tasks.push(tokio::spawn(async move {
            for n in 0..16 {
                let mut batch = put(&format!("{task:02}-{n:02}"), &"x".repeat(n * 50));
                batch.put(Tree::Body, format!("{task:02}-{n:02}"), vec![b'y'; 3000]);
                batch.put(Tree::Due, format!("{task:02}-{n:02}"), "");
                if n > 0 {
                    batch.delete(Tree::Due, format!("{task:02}-{:02}", n - 1));
                }
                store.commit(batch).await.unwrap();
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let health = store.health();
    assert!(health.writable && health.batches == 256, "{health:?}");
    assert!(health.group_size.counts.iter().sum::<u64>() < 256, "whoever waits is batched: {health:?}");
    // The files as a killed process leaves them.
    let left = dir.path().join("left");
    copy_dir(&live, &left);
    let (again, report, _) = open(&left);
    assert!(!report.is_new && report.alarms.is_empty(), "{report:?}");
    assert_eq!(all(&again, Tree::Rec), all(&*store, Tree::Rec));
    assert_eq!(all(&again, Tree::Rec).len(), 256);
    assert_eq!(all(&again, Tree::Body).len(), 256);
    assert_eq!(all(&again, Tree::Due).len(), 16);
    assert_eq!(report.live_bytes, health.live_bytes, "counted along the way and counted anew");
    again.close().await;
    store.close().await;
}

#[tokio::test]
async fn a_document_of_sixteen_mebibytes_is_one_batch() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, _) = open(dir.path());
    let body: Vec<u8> = (0..16 << 20).map(|n: u32| (n % 251) as u8).collect();
    let mut batch = put("doc", "record");
    for (n, chunk) in chunks(&body).enumerate() {
        batch.put(Tree::Body, (n as u32).to_be_bytes(), chunk);
    }
    store.commit(batch).await.unwrap();
    assert!(!store.health().blobs, "values stay inline");
    store.close().await;
    drop(store);
    let (store, _, _) = open(dir.path());
    let mut read = Vec::new();
    store
        .scan(Tree::Body, b"", None, &mut |_, chunk| {
            read.extend(chunk.unwrap());
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(read == body);
    store.close().await;
}

#[tokio::test]
async fn what_is_too_large_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, probe) = open(dir.path());
    let mut fits = Batch::new();
    fits.put(Tree::Body, vec![0; MAX_KEY], vec![0; MAX_CHUNK]);
    store.commit(fits).await.unwrap();
    probe.take();
    let mut value = Batch::new();
    value.put(Tree::Body, "k", vec![0; MAX_CHUNK + 1]);
    let mut key = Batch::new();
    key.delete(Tree::Body, vec![0; MAX_KEY + 1]);
    let mut whole = Batch::new();
    for n in 0..=MAX_BATCH / MAX_CHUNK {
        whole.put(Tree::Body, n.to_be_bytes(), vec![0; MAX_CHUNK]);
    }
    for (batch, named) in [(value, "value"), (key, "key"), (whole, "batch")] {
        let error = store.commit(batch).await.unwrap_err();
        assert!(matches!(error, StoreError::TooLarge { what, .. } if what == named), "{error}");
    }
    assert!(probe.take().is_empty());
    store.close().await;
}

#[tokio::test]
async fn scans_go_by_prefix_and_after_a_key_and_stop_when_told() {
    let dir = tempfile::tempdir().unwrap();
    let (sled, _, _) = open(dir.path());
    let stores: [&dyn Store; 2] = [&sled, &MemStore::new()];
    for store in stores {
        let mut batch = Batch::new();
        for key in ["a1", "a2", "a3", "b1"] {
            batch.put(Tree::Order, key, key).put(Tree::Due, key, "");
        }
        batch.delete(Tree::Order, "a9").put(Tree::Order, "a2", "later wins");
        store.commit(batch).await.unwrap();
        let scan = |prefix: &str, after: Option<&str>, most: usize| {
            let mut keys = Vec::new();
            let visit = &mut |key: &[u8], _: Found| {
                keys.push(String::from_utf8(key.to_vec()).unwrap());
                if keys.len() == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            store.scan(Tree::Order, prefix.as_bytes(), after.map(str::as_bytes), visit).unwrap();
            keys.join(" ")
        };
        assert_eq!(scan("a", None, 9), "a1 a2 a3");
        assert_eq!(scan("a", Some("a1"), 9), "a2 a3");
        assert_eq!(scan("b", Some("a1"), 9), "b1");
        assert_eq!(scan("", None, 2), "a1 a2");
        assert_eq!(scan("c", None, 9), "");
        assert_eq!(store.get(Tree::Order, b"a2").unwrap().unwrap(), b"later wins");
        assert_eq!(store.get(Tree::Rec, b"a2").unwrap(), None);
        store.close().await;
        assert!(matches!(store.get(Tree::Rec, b"a2"), Err(StoreError::Closed { .. })));
        assert!(matches!(store.commit(Batch::new()).await, Err(StoreError::Closed { .. })));
        store.close().await;
    }
}

#[tokio::test]
async fn a_full_channel_makes_callers_wait_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let probe = Probe::new();
    let (store, _) = SledStore::open(dir.path(), &keys(), Options { channel: 2, ..options(&probe) }).unwrap();
    let commits: Vec<_> = (0..20).map(|n| store.commit(put(&n.to_string(), "v"))).collect();
    for commit in commits {
        tokio::time::timeout(PATIENCE, commit).await.unwrap().unwrap();
    }
    assert_eq!(all(&store, Tree::Rec).len(), 20);
    // Dropping a future that was handed over takes nothing back.
    drop(store.commit(put("dropped", "v")));
    store.commit(Batch::new()).await.unwrap();
    assert!(store.get(Tree::Rec, b"dropped").unwrap().is_some());
    store.close().await;
}
