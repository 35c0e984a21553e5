//! Backups.

use super::*;

fn order(to: PathBuf) -> BackupOrder {
    BackupOrder { to, secret: None, now: jiff::Timestamp::UNIX_EPOCH }
}

/// A store of one record, alone in a folder.
async fn one() -> (tempfile::TempDir, SledStore, Arc<Probe>) {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, probe) = open(&dir.path().join("queue"));
    store.commit(put("k", "v")).await.unwrap();
    (dir, store, probe)
}

/// Restores a backup into a fresh folder and opens it.
fn restored(backup: &Path, into: &Path) -> (SledStore, OpenReport, Arc<Probe>) {
    let backup = Backup::open(backup).unwrap();
    let place = into.join("queue");
    let rows = Rows::of_backup(&backup, &keys(), Scratch::beside(&place).unwrap()).unwrap();
    rows.install(&place, false, jiff::Timestamp::UNIX_EPOCH).unwrap();
    assert_eq!(std::fs::read_dir(into).unwrap().count(), 1, "nothing is left beside it");
    open(&place)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_taken_amid_writes_is_the_state_of_one_moment() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, probe) = open(&dir.path().join("queue"));
    let store = Arc::new(store);
    for n in 0..200 {
        store.commit(put(&format!("{n:03}"), "before")).await.unwrap();
    }
    // Each batch changes a key at the front and one at the end, adds one and deletes one, while the rows are read; one
    // rotation and one failed sync come between.
    let (ask, asked) = std::sync::mpsc::channel::<std::sync::mpsc::Sender<()>>();
    let rows = AtomicUsize::new(0);
    let ask = Mutex::new(ask);
    probe.act(move |step, _| {
        if step == Step::BackupRow && rows.fetch_add(1, SeqCst) % 20 == 10 {
            let (done, is_done) = std::sync::mpsc::channel();
            if ask.lock().unwrap().send(done).is_ok() {
                let _ = is_done.recv();
            }
        }
        Ok(())
    });
    let backup = dir.path().join("backup");
    let making = tokio::spawn(store.backup(order(backup.clone())));
    let writer = store.clone();
    let rounds = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Handle::current();
        let mut round = 0;
        while let Ok(done) = asked.recv_timeout(PATIENCE) {
            round += 1;
            let mut batch = put("000", &round.to_string());
            batch.put(Tree::Rec, "199", round.to_string());
            batch.put(Tree::Rec, format!("new-{round}"), "new");
            batch.delete(Tree::Rec, format!("{:03}", 100 + round));
            runtime.block_on(writer.commit(batch)).unwrap();
            if round == 3 {
                runtime.block_on(writer.rotate()).unwrap();
            }
            let _ = done.send(());
            if round == 8 {
                break;
            }
        }
        round
    });
    let round = rounds.await.unwrap();
    assert_eq!(round, 8);
    let manifest = making.await.unwrap().unwrap();
    assert_eq!(manifest.unreadable, 0);
    let expected = all(&*store, Tree::Rec);
    store.commit(put("after", "the backup")).await.unwrap();
    store.close().await;

    let other = tempfile::tempdir().unwrap();
    let (again, report, _) = restored(&backup, other.path());
    assert!(report.alarms.is_empty(), "{report:?}");
    let found = all(&again, Tree::Rec);
    assert_eq!(found["000"], found["199"], "both or neither");
    assert_eq!(found, expected);
    assert!(again.get(Tree::Meta, ROLLED_BACK).unwrap().is_some(), "what is restored is old");
    again.commit(put("goes on", "v")).await.unwrap();
    again.close().await;
}

#[tokio::test]
async fn a_backup_that_fails_leaves_nothing_and_one_that_was_killed_is_replaced() {
    let (dir, store, probe) = one().await;
    let to = dir.path().join("backup");
    for step in [Step::BackupRow, Step::BackupWritten] {
        probe.fail(step, 1);
        store.backup(order(to.clone())).await.unwrap_err();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "after {step:?}");
    }
    // As a kill leaves it.
    let killed = tempfile::tempdir().unwrap();
    let (from, at) = (dir.path().join("backup.partial"), killed.path().join("backup.partial"));
    let copy = at.clone();
    probe.act(move |step, _| {
        if step == Step::BackupWritten {
            copy_dir(&from, &copy);
        }
        Ok(())
    });
    store.backup(order(to.clone())).await.unwrap();
    probe.calm();
    assert!(backup::is_backup(&to) && !backup::is_backup(&at));
    assert!(matches!(Backup::open(&at), Err(BackupError::Place { .. })));
    store.backup(order(killed.path().join("backup"))).await.unwrap();
    assert!(!at.exists());
    Backup::open(&killed.path().join("backup")).unwrap();
    // What is no leftover of ours stays.
    std::fs::create_dir(&at).unwrap();
    std::fs::write(at.join("thesis.txt"), "mine").unwrap();
    std::fs::remove_dir_all(killed.path().join("backup")).unwrap();
    store.backup(order(killed.path().join("backup"))).await.unwrap_err();
    assert!(at.join("thesis.txt").exists());
    store.close().await;
}

#[tokio::test]
async fn a_backup_goes_only_where_nothing_is_and_never_takes_the_space_of_the_queue() {
    let (dir, store, probe) = one().await;
    let there = dir.path().join("there");
    std::fs::create_dir(&there).unwrap();
    for to in [there.clone(), PathBuf::from("relative"), dir.path().join("queue/inside"), PathBuf::from("/")]
    {
        let error = store.backup(order(to.clone())).await.unwrap_err();
        assert!(matches!(error, BackupError::Place { .. }), "{to:?}: {error}");
    }
    probe.free.store(1 << 20, SeqCst);
    let error = store.backup(order(dir.path().join("backup"))).await.unwrap_err();
    assert!(matches!(error, BackupError::NoSpace { .. }), "{error}");
    store.close().await;
    assert!(matches!(
        store.backup(order(dir.path().join("backup"))).await,
        Err(BackupError::Store(StoreError::Closed { .. }))
    ));
}
