//! Inspections.

use super::*;

#[tokio::test]
async fn an_inspection_changes_nothing_and_names_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    made(dir.path()).await;
    let look = |keys: &Keys| {
        let scratch = Scratch::inside(&std::env::temp_dir()).unwrap();
        Inspection::of_store(dir.path(), keys, scratch).unwrap()
    };
    let found = look(&keys());
    assert!(found.problems.is_empty(), "{found:?}");
    let mut count = 0;
    let rows = found.rows.unwrap();
    rows.scan(Tree::Rec, &mut |_, value| {
        count += usize::from(value.is_ok());
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(count > 0);
    let own = look(&Keys::from_bytes([9; 32], [9; 32]));
    assert!(own.problems.iter().any(|problem| problem.place.ends_with("key")), "{own:?}");
    std::fs::create_dir(dir.path().join("corrupt-20260101T000000Z-1")).unwrap();
    std::fs::write(dir.path().join("VERSION"), "?").unwrap();
    let found = look(&keys());
    assert!(found.problems.iter().any(|problem| problem.place.ends_with("VERSION")), "{found:?}");
    assert!(found.notes.iter().any(|note| note.contains("corrupt-")), "{found:?}");
    assert_eq!(std::fs::read(dir.path().join("VERSION")).unwrap(), b"?");
    std::fs::write(dir.path().join("VERSION"), "2\n").unwrap();
    let scratch = Scratch::inside(&std::env::temp_dir()).unwrap();
    let error = Inspection::of_store(dir.path(), &keys(), scratch).unwrap_err();
    assert!(matches!(error, BackupError::Open(OpenError::NewerSchema { .. })), "{error}");
}

#[tokio::test]
async fn an_inspection_notices_a_log_that_was_cut_by_damage() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path()).await;
    let killed = cut(dir.path());
    let db = killed.path().join("epoch-1/db");
    let bytes = std::fs::read(&db).unwrap();
    let scratch = Scratch::inside(&std::env::temp_dir()).unwrap();
    let found = Inspection::of_store(killed.path(), &keys(), scratch).unwrap();
    assert!(found.problems.iter().any(|problem| problem.what.contains("acknowledged commits")), "{found:?}");
    assert_eq!(std::fs::read(&db).unwrap(), bytes, "the evidence stays");
    store.close().await;
}
