//! Opening what is there.

use super::*;

#[tokio::test]
async fn a_damaged_snapshot_is_moved_aside_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    made(dir.path()).await;
    let epoch = dir.path().join("epoch-1");
    std::fs::write(epoch.join("snap.FFFFFFFFFFFFFFF0"), b"broken").unwrap();
    let (store, report, _) = open(dir.path());
    assert!(matches!(report.alarms[..], [Alarm::SnapshotsMoved { .. }]), "{report:?}");
    assert_eq!(all(&store, Tree::Rec).len(), 1);
    store.close().await;
}

#[tokio::test]
async fn a_database_that_cannot_be_read_is_kept_and_a_fresh_one_counts() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 3] = [
        ("cut to nothing", |epoch| {
            std::fs::write(epoch.join("db"), b"").unwrap();
            super::epoch::move_snapshots(epoch).unwrap();
        }),
        ("gone", |epoch| std::fs::remove_file(epoch.join("db")).unwrap()),
        ("overwritten", |epoch| {
            std::fs::write(epoch.join("db"), vec![0xa5; 4 << 20]).unwrap();
        }),
    ];
    for (name, damage) in damages {
        let dir = tempfile::tempdir().unwrap();
        made(dir.path()).await;
        damage(&dir.path().join("epoch-1"));
        let (store, report, _) = open(dir.path());
        let [Alarm::SetAside { to, .. }] = &report.alarms[..] else { panic!("{name}: {report:?}") };
        assert!(to.is_dir() && to.ends_with("corrupt-20231114T221320Z-1"), "{name}: {}", to.display());
        assert!(all(&store, Tree::Rec).is_empty());
        store.commit(put("b", "2")).await.unwrap();
        store.close().await;
        drop(store);
        let (store, report, _) = open(dir.path());
        assert!(report.alarms.is_empty() && !report.is_new && report.epoch == 2, "{name}: {report:?}");
        assert_eq!(all(&store, Tree::Rec).len(), 1);
        assert!(to.is_dir(), "never deleted");
        store.close().await;
    }
}

#[tokio::test]
async fn without_current_the_epoch_that_is_there_is_used_and_told() {
    for content in [None, Some("nonsense"), Some("epoch-9\n")] {
        let dir = tempfile::tempdir().unwrap();
        made(dir.path()).await;
        let current = dir.path().join("CURRENT");
        match content {
            None => std::fs::remove_file(&current).unwrap(),
            Some(text) => std::fs::write(&current, text).unwrap(),
        }
        let (store, report, _) = open(dir.path());
        assert!(matches!(report.alarms[..], [Alarm::CurrentLost { used: Some(1), .. }]), "{report:?}");
        assert_eq!(all(&store, Tree::Rec).len(), 1);
        store.close().await;
        assert_eq!(std::fs::read_to_string(&current).unwrap(), "epoch-1\n");
    }
}

#[tokio::test]
async fn a_second_process_is_told_and_damages_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, _) = open(dir.path());
    let hasty = Options { lock_wait: Duration::from_millis(50), ..options(&Probe::new()) };
    let error = SledStore::open(dir.path(), &keys(), hasty).err().unwrap();
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    assert!(error.to_string().contains("epoch-1"), "{error}");
    store.commit(put("a", "1")).await.unwrap();
    store.close().await;
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    made(dir.path()).await;
    std::fs::write(dir.path().join("VERSION"), "2\n").unwrap();
    let error = SledStore::open(dir.path(), &keys(), options(&Probe::new())).err().unwrap();
    assert!(matches!(error, OpenError::NewerSchema { found: 2, supported: 1, .. }), "{error}");
    std::fs::write(dir.path().join("VERSION"), "?").unwrap();
    let (store, report, _) = open(dir.path());
    assert!(matches!(report.alarms[..], [Alarm::VersionUnreadable { .. }]), "{report:?}");
    assert_eq!(all(&store, Tree::Rec).len(), 1);
    store.close().await;
}

#[tokio::test]
async fn a_folder_that_cannot_be_used_is_named_and_a_full_disk_is_not_damage() {
    let error = SledStore::open(Path::new("/proc/seawall"), &keys(), options(&Probe::new())).err().unwrap();
    assert!(error.to_string().contains("/proc/seawall"), "{error}");
    let dir = tempfile::tempdir().unwrap();
    made(dir.path()).await;
    let probe = Probe::new();
    probe.act(|step, _| match step {
        Step::Open => Err(io::ErrorKind::StorageFull.into()),
        _ => Ok(()),
    });
    let error = SledStore::open(dir.path(), &keys(), options(&probe)).err().unwrap();
    assert!(matches!(error, OpenError::Io { .. }), "{error}");
    assert_eq!(epochs(dir.path()), ["epoch-1"]);
}

#[tokio::test]
async fn a_log_that_was_cut_by_damage_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path()).await;
    // As a killed process leaves it.
    let killed = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), killed.path());
    let (again, report, _) = open(killed.path());
    assert!(report.alarms.is_empty(), "{report:?}");
    again.close().await;
    let killed = cut(dir.path());
    let (again, report, _) = open(killed.path());
    assert!(report.is_rolled_back(), "{} left, {report:?}", all(&again, Tree::Rec).len());
    again.commit(put("goes on", "v")).await.unwrap();
    again.close().await;
    drop(again);
    let (again, report, _) = open(killed.path());
    assert!(report.alarms.is_empty(), "told once: {report:?}");
    assert!(again.get(Tree::Meta, ROLLED_BACK).unwrap().is_some(), "and marked until it is settled");
    let mut batch = Batch::new();
    batch.delete(Tree::Meta, ROLLED_BACK);
    again.commit(batch).await.unwrap();
    again.close().await;
    drop(again);
    let (again, ..) = open(killed.path());
    assert!(again.get(Tree::Meta, ROLLED_BACK).unwrap().is_none());
    again.close().await;
    store.close().await;
}
