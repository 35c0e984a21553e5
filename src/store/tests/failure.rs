//! Errors of the disk.

use super::*;

#[tokio::test]
async fn a_write_or_sync_error_finishes_the_epoch_and_the_batch_is_durable_in_the_next() {
    for step in [Step::Write, Step::Flush, Step::Sync] {
        let dir = tempfile::tempdir().unwrap();
        let (store, _, probe) = open(dir.path());
        store.commit(put("a", "1")).await.unwrap();
        probe.fail(step, 1);
        let mut batch = put("b", "2");
        batch.delete(Tree::Rec, "a");
        store.commit(batch).await.unwrap();
        let health = store.health();
        assert_eq!(
            (health.epoch, health.epochs_finished_by_error, health.writable),
            (2, 1, true),
            "{step:?}"
        );
        assert_eq!(epochs(dir.path()), ["epoch-2"], "{step:?}");
        store.close().await;
        drop(store);
        let (store, report, _) = open(dir.path());
        assert!(report.alarms.is_empty() && report.epoch == 2, "{report:?}");
        assert_eq!(all(&store, Tree::Rec), BTreeMap::from([("b".into(), "2".into())]));
        store.close().await;
    }
}

#[tokio::test]
async fn a_panic_of_the_database_is_an_error_like_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, probe) = open(dir.path());
    let has_panicked = AtomicUsize::new(0);
    probe.act(move |step, _| {
        assert!(step != Step::Flush || has_panicked.fetch_add(1, SeqCst) > 0, "sled panics");
        Ok(())
    });
    store.commit(put("a", "1")).await.unwrap();
    assert_eq!(store.health().epoch, 2);
    assert_eq!(all(&store, Tree::Rec).len(), 1);
    store.close().await;
}

#[tokio::test]
async fn without_a_fresh_epoch_reads_show_what_was_acknowledged_and_it_heals_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, probe) = open(dir.path());
    let mut batch = put("changed", "old");
    batch.put(Tree::Rec, "deleted", "old").put(Tree::Rec, "kept", "old");
    store.commit(batch).await.unwrap();
    // The first sync fails, and so does every copy.
    probe.act(|step, _| match step {
        Step::Sync | Step::CopySynced => Err(io::Error::other("injected")),
        _ => Ok(()),
    });
    let acknowledged = all(&store, Tree::Rec);
    for _ in 0..3 {
        let mut batch = put("changed", "new");
        batch.put(Tree::Rec, "added", "new").delete(Tree::Rec, "deleted");
        let error = store.commit(batch).await.unwrap_err();
        assert!(matches!(error, StoreError::Failed { .. }), "{error}");
        assert!(error.to_string().contains(&*dir.path().to_string_lossy()), "{error}");
        assert_eq!(all(&store, Tree::Rec), acknowledged);
        assert_eq!(store.get(Tree::Rec, b"changed").unwrap().unwrap(), b"old");
        assert_eq!(store.get(Tree::Rec, b"added").unwrap(), None);
    }
    let health = store.health();
    assert!(!health.writable && health.failed.is_some() && health.refused == 3, "{health:?}");
    assert_eq!(health.epochs_finished_by_error, 1);
    assert_eq!(epochs(dir.path()), ["epoch-1"], "copies that never counted are gone");
    probe.calm();
    store.commit(put("later", "yes")).await.unwrap();
    let health = store.health();
    assert!(health.writable && health.failed.is_none(), "{health:?}");
    let mut expected = acknowledged;
    expected.insert("later".into(), "yes".into());
    assert_eq!(all(&store, Tree::Rec), expected);
    store.close().await;
    drop(store);
    let (store, _, _) = open(dir.path());
    assert_eq!(all(&store, Tree::Rec), expected, "what was refused does not come back");
    store.close().await;
}

#[tokio::test]
async fn a_failed_store_is_tried_again_only_now_and_then() {
    let dir = tempfile::tempdir().unwrap();
    let probe = Probe::new();
    let slow = Options { retry_after: Duration::from_secs(600), ..options(&probe) };
    let (store, _) = SledStore::open(dir.path(), &keys(), slow).unwrap();
    probe.act(|step, _| match step {
        Step::Sync | Step::CopyWritten => Err(io::Error::other("injected")),
        _ => Ok(()),
    });
    store.commit(put("a", "1")).await.unwrap_err();
    probe.calm();
    probe.take();
    store.commit(put("a", "1")).await.unwrap_err();
    assert_eq!(probe.take(), [Step::Answer], "sled is left alone");
    store.close().await;
}

#[tokio::test]
async fn without_space_sled_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, probe) = open(dir.path());
    probe.free.store(1000, SeqCst);
    let error = store.commit(put("a", "1")).await.unwrap_err();
    assert!(matches!(error, StoreError::NoSpace { free: 1000, .. }), "{error}");
    assert_eq!(probe.take(), [Step::Answer]);
    assert!(store.health().low_space && !store.health().writable);
    probe.free.store(u64::MAX / 4, SeqCst);
    store.commit(put("a", "1")).await.unwrap();
    assert!(store.health().writable);
    store.close().await;
}

#[tokio::test]
async fn with_little_space_only_what_settles_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, probe) = open(dir.path());
    store.commit(put("a", "1")).await.unwrap();
    let watermark = options(&probe).min_free_bytes;
    probe.free.store(watermark / 2, SeqCst);
    let settling = || {
        let mut batch = put("a", "2");
        batch.settling();
        batch
    };
    let (new, old) = tokio::join!(store.commit(put("b", "1")), store.commit(settling()));
    assert!(matches!(new, Err(StoreError::NoSpace { .. })));
    old.unwrap();
    assert_eq!(store.get(Tree::Rec, b"a").unwrap().as_deref(), Some(&b"2"[..]));
    assert!(store.health().low_space);
    // A copy gives space back.
    store.rotate().await.unwrap();
    probe.free.store(watermark / 8, SeqCst);
    assert!(matches!(store.commit(settling()).await, Err(StoreError::NoSpace { .. })));
    store.close().await;
}

#[tokio::test]
async fn blob_files_are_an_alarm() {
    let dir = tempfile::tempdir().unwrap();
    let probe = Probe::new();
    let quick = Options { heartbeat: Duration::from_millis(10), ..options(&probe) };
    let (store, _) = SledStore::open(dir.path(), &keys(), quick).unwrap();
    std::fs::write(dir.path().join("epoch-1/blobs/1"), b"").unwrap();
    until("the alarm", || store.health().blobs);
    store.close().await;
    drop(store);
    let (store, report, _) = open(dir.path());
    assert!(matches!(report.alarms[..], [Alarm::Blobs { .. }]), "{report:?}");
    store.close().await;
}

#[tokio::test]
async fn an_idle_store_is_written_to_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let probe = Probe::new();
    let quick = Options { heartbeat: Duration::from_millis(10), ..options(&probe) };
    let (store, _) = SledStore::open(dir.path(), &keys(), quick).unwrap();
    probe.fail(Step::Sync, 1);
    until("a heartbeat that meets the error, and the rescue", || {
        let health = store.health();
        health.epoch == 2 && health.writable
    });
    store.close().await;
}
