//! Rotation.

use super::*;

#[tokio::test]
async fn a_kill_at_each_step_of_a_rotation_loses_nothing() {
    let steps =
        [Step::CopyWritten, Step::CopySynced, Step::CurrentWritten, Step::CurrentRenamed, Step::OldDeleted];
    let dir = tempfile::tempdir().unwrap();
    let live = dir.path().join("live");
    let (store, _, probe) = open(&live);
    for n in 0..30 {
        store.commit(put(&format!("{n:02}"), &"v".repeat(n * 100))).await.unwrap();
    }
    let expected = all(&store, Tree::Rec);
    let states: PathBuf = dir.path().join("states");
    let (from, to) = (live.clone(), states.clone());
    probe.act(move |step, _| {
        if steps.contains(&step) {
            copy_dir(&from, &to.join(format!("{step:?}")));
        }
        Ok(())
    });
    let rotation = store.rotate().await.unwrap();
    assert_eq!((rotation.from, rotation.to), (1, 2));
    assert_eq!(all(&store, Tree::Rec), expected);
    store.commit(put("after", "1")).await.unwrap();
    store.close().await;
    for step in steps {
        let state = states.join(format!("{step:?}"));
        let (again, report, _) = open(&state);
        assert!(report.alarms.is_empty(), "{step:?}: {report:?}");
        let is_switched = matches!(step, Step::CurrentRenamed | Step::OldDeleted);
        assert_eq!(report.epoch, if is_switched { 2 } else { 1 }, "{step:?}");
        assert_eq!(all(&again, Tree::Rec), expected, "{step:?}");
        assert_eq!(epochs(&state), [format!("epoch-{}", report.epoch)], "{step:?}: the rest is deleted");
        again.commit(put("goes on", "1")).await.unwrap();
        again.rotate().await.unwrap();
        again.close().await;
    }
}

#[tokio::test]
async fn a_rotation_that_fails_before_the_switch_leaves_the_old_epoch_at_work() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, probe) = open(dir.path());
    store.commit(put("a", "1")).await.unwrap();
    for step in [Step::CopyWritten, Step::CopySynced, Step::CurrentWritten] {
        probe.fail(step, 1);
        store.rotate().await.unwrap_err();
        let health = store.health();
        assert!(health.writable && health.epoch == 1, "{step:?}: {health:?}");
        assert_eq!(epochs(dir.path()), ["epoch-1"]);
        store.commit(put("b", "2")).await.unwrap();
    }
    store.close().await;
}

#[tokio::test]
async fn after_a_switch_in_doubt_the_old_epoch_takes_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, probe) = open(dir.path());
    store.commit(put("a", "1")).await.unwrap();
    probe.fail(Step::CurrentRenamed, 1);
    store.rotate().await.unwrap_err();
    assert!(!store.health().writable);
    store.commit(put("b", "2")).await.unwrap();
    assert_eq!(store.health().epoch, 3, "neither of the two in doubt");
    store.close().await;
    drop(store);
    let (store, report, _) = open(dir.path());
    assert_eq!((report.epoch, all(&store, Tree::Rec).len()), (3, 2));
    assert_eq!(epochs(dir.path()), ["epoch-3"]);
    store.close().await;
}

#[tokio::test]
async fn an_epoch_that_is_mostly_dead_is_left_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let probe = Probe::new();
    let quick =
        Options { heartbeat: Duration::from_millis(20), rotate_above_bytes: 6 << 20, ..options(&probe) };
    let (store, _) = SledStore::open(dir.path(), &keys(), quick).unwrap();
    for round in 0..10 {
        let mut batch = put("kept", "value");
        for n in 0..100_u32 {
            batch.put(Tree::Body, n.to_be_bytes(), vec![round; MAX_CHUNK]);
        }
        store.commit(batch).await.unwrap();
    }
    let mut batch = Batch::new();
    for n in 0..100_u32 {
        batch.delete(Tree::Body, n.to_be_bytes());
    }
    store.commit(batch).await.unwrap();
    assert!(store.health().live_bytes < 4096, "{:?}", store.health());
    // There may have been one between the rounds already.
    until("the rotation", || {
        let health = store.health();
        health.rotations > 0 && health.disk_bytes < 6 << 20
    });
    assert_eq!(all(&store, Tree::Rec).len(), 1);
    assert!(all(&store, Tree::Body).is_empty());
    store.close().await;
}

#[tokio::test]
async fn a_scan_goes_on_over_a_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, _) = open(dir.path());
    for key in ["a", "b", "c"] {
        store.commit(put(key, "1")).await.unwrap();
    }
    let store = Arc::new(store);
    let (mut seen, mut rotated) = (0, None);
    store
        .scan(Tree::Rec, b"", None, &mut |_, value| {
            value.unwrap();
            seen += 1;
            let (done, is_done) = std::sync::mpsc::channel();
            let store = store.clone();
            if rotated.is_none() {
                rotated = Some(thread::spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                    runtime.block_on(store.rotate()).unwrap();
                    done.send(()).unwrap();
                }));
                is_done.recv_timeout(PATIENCE).unwrap();
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((seen, store.health().epoch), (3, 2));
    store.close().await;
}
