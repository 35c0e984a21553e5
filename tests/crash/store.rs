//! `seawall store` on the real binary: a backup taken while it works, killed in the middle, damaged, restored; and what
//! the service manager is told.

use crate::process::{Ended, Server, Setup};
use crate::support::{PATIENCE, arrivals, simulator};
use crate::support::{booking, patch};
use crate::{applied, assert_eventually, shipments};
use http::Method;
use rustix::process::Signal;
use serde_json::json;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Runs `seawall` with these words, and the folder and keys of `setup`.
fn seawall(setup: &Setup, words: &[&str]) -> Ended {
    let output = assert_cmd::Command::new(env!("CARGO_BIN_EXE_seawall"))
        .args(words)
        .current_dir(setup.dir.path())
        .env_clear()
        .env("SEAWALL__DATA_DIR", setup.data())
        .timeout(PATIENCE)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ended { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

fn done(ended: Ended) -> String {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended.stdout
}

fn refused(ended: &Ended, words: &[&str]) {
    assert_eq!(ended.code, Some(1), "{ended:?}");
    for word in words {
        assert!(ended.stderr.contains(word), "no {word:?} in {ended:?}");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Off the runtime, which must go on: the simulator and the pipes live in it.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

async fn back_up(server: &Server, setup: &Setup, to: &Path, more: &[&'static str]) -> Ended {
    let (setup, admin, to, more) = (setup.clone(), server.admin.clone(), to.to_owned(), more.to_vec());
    beside(move || seawall(&setup, &[&["--admin", &admin, "store", "backup", text(&to)], &more[..]].concat()))
        .await
}

/// Nothing goes out any more: what comes is queued, and provably not sent.
async fn shut(server: &Server) {
    let switch = json!({"mode": "forced_open", "reason": "a test"});
    assert_eq!(server.admin(Method::PUT, "/api/v1/breakers/all/override", Some(switch)).await.status, 200);
}

async fn open(server: &Server) {
    assert_eq!(server.admin(Method::DELETE, "/api/v1/breakers/all/override", None).await.status, 200);
}

/// Two changes of a shipment and a booking, all queued while nothing goes out.
async fn queue_three(server: &Server) -> (String, String, String, Vec<String>) {
    let ids = shipments(server).await;
    shut(server).await;
    let path = |index: usize| format!("/shipments/{}", ids[index]);
    let first = server.send(Method::PATCH, &path(0), &[], &patch("first")).await.ticket();
    let second = server.send(Method::PATCH, &path(0), &[], &patch("second")).await.ticket();
    let booked = server.send(Method::POST, "/bookings", &[], &booking("restored")).await.ticket();
    (first, second, booked, ids)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restore_nothing_is_sent_before_a_person_has_decided() {
    let simulator = simulator().await;
    let setup = Setup::new(&simulator.url(), &[]);
    let server = setup.start().await;
    let (first, second, booked, ids) = queue_three(&server).await;
    let backup = setup.dir.path().join("backups/one");
    let made = back_up(&server, &setup, &backup, &[]).await;
    assert!(made.stderr.contains("NOT in this backup"), "{made:?}");
    done(made);
    assert!(!backup.join("secret").exists());
    // After the backup all of it is sent.
    open(&server).await;
    for id in [&first, &second, &booked] {
        assert_eventually!(server.state(id).await == "done");
    }
    let sent = applied(&simulator);
    assert_eq!(sent.len(), 3, "{sent:?}");
    let (inner, admin) = (setup.clone(), server.admin.clone());
    let found = beside(move || seawall(&inner, &["--admin", &admin, "store", "verify"])).await;
    assert!(done(found).contains("sound"));
    // While it runs: only through the admin API.
    let inner = setup.clone();
    let (running, restored) = beside(move || {
        let data = inner.data();
        (
            seawall(&inner, &["store", "verify", text(&data)]),
            seawall(&inner, &["store", "restore", text(&inner.dir.path().join("backups/one")), "--yes"]),
        )
    })
    .await;
    refused(&running, &["is locked by process"]);
    refused(&restored, &["stop Seawall"]);
    server.stop().await;

    let (inner, from) = (setup.clone(), backup.clone());
    let (asked, occupied, restored) = beside(move || {
        let restore = ["store", "restore", text(&from)];
        (
            seawall(&inner, &restore),
            seawall(&inner, &[&restore[..], &["--yes"]].concat()),
            seawall(&inner, &[&restore[..], &["--yes", "--set-aside"]].concat()),
        )
    })
    .await;
    refused(&asked, &["pass --yes", "nothing was changed"]);
    refused(&occupied, &["--set-aside"]);
    assert!(done(restored).contains("3 unsettled writes"));
    let inner = setup.clone();
    let verified = done(beside(move || seawall(&inner, &["store", "verify"])).await);
    assert!(verified.contains("pending  3") && verified.contains("older than what happened"), "{verified}");

    let server = setup.start().await;
    for (id, state, is_held) in
        [(&first, "waiting", true), (&second, "waiting", true), (&booked, "unknown", false)]
    {
        let ticket = server.ticket(id).await;
        assert_eq!(ticket["state"], state, "{ticket}");
        assert_eq!(ticket["is_held"], is_held, "{ticket}");
        assert_eq!(ticket["reason"], "rolled_back", "{ticket}");
    }
    // Others go through, so that what would be sent had its chance.
    for value in ["one", "two"] {
        let path = format!("/shipments/{}", ids[1]);
        assert_eq!(server.send(Method::PATCH, &path, &[], &patch(value)).await.status, 200);
    }
    assert_eq!(applied(&simulator).len(), sent.len() + 2);
    assert_eq!(arrivals(&simulator, "POST", "/bookings"), 1);
    // A start without a decision changes nothing.
    server.stop().await;
    let server = setup.start().await;
    assert!(server.ticket(&first).await["is_held"].as_bool().unwrap());

    let (inner, admin, ids) =
        (setup.clone(), server.admin.clone(), [first.clone(), second.clone(), booked.clone()]);
    beside(move || {
        let operate = |words: &[&str]| {
            done(seawall(&inner, &[&["--admin", &admin, "--yes", "queue"], words].concat()));
        };
        let because = ["--reason", "Flexport shows the old value"];
        operate(&[&["resolve", &ids[2], "--as", "applied"], &because[..]].concat());
        operate(&[&["release", &ids[0]], &because[..]].concat());
        operate(&[&["release", &ids[1]], &because[..]].concat());
    })
    .await;
    for id in [&first, &second, &booked] {
        assert_eventually!(server.state(id).await == "done");
    }
    assert_eq!(applied(&simulator).len(), sent.len() + 4, "the two that were released");
    assert_eq!(arrivals(&simulator, "POST", "/bookings"), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_in_the_middle_of_a_backup_leaves_a_whole_one_or_none_and_a_sound_store() {
    let simulator = simulator().await;
    let setup = Setup::new(&simulator.url(), &["telemetry.log=warn,seawall::app=info"]);
    let mut server = setup.start().await;
    let ids = shipments(&server).await;
    shut(&server).await;
    let long = patch(&"x".repeat(200_000));
    for index in 0..60 {
        let path = format!("/shipments/{}", ids[index % ids.len()]);
        server.send(Method::PATCH, &path, &[], &long).await.ticket();
    }
    let backup = setup.dir.path().join("backup");
    let rows = setup.dir.path().join("backup.partial/rows");
    for round in 0..3 {
        let call = json!({ "path": backup });
        let making = server.admin(Method::POST, "/api/v1/store/backup", Some(call));
        let begun = async {
            assert_eventually!(rows.metadata().is_ok_and(|file| file.len() > 0) || backup.exists());
        };
        // The answer may be quicker than the look.
        tokio::select! { biased; () = begun => {}, _ = making => {} }
        server.kill();
        let (inner, to) = (setup.clone(), backup.clone());
        let (store, made) = beside(move || {
            (seawall(&inner, &["store", "verify"]), seawall(&inner, &["store", "verify", text(&to)]))
        })
        .await;
        assert!(done(store).contains("pending  60"), "round {round}");
        if backup.exists() {
            assert!(done(made).contains("pending  60"), "round {round}");
            std::fs::remove_dir_all(&backup).unwrap();
        } else {
            refused(&made, &["name a data folder, or a backup"]);
        }
        server = setup.start().await;
    }
    // What the kill has left is no obstacle.
    done(back_up(&server, &setup, &backup, &[]).await);
    assert!(!rows.exists());
    server.stop().await;
    let inner = setup.clone();
    assert!(
        done(beside(move || seawall(&inner, &["store", "verify", text(&backup)])).await)
            .contains("pending  60")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_is_changed_by_a_start_with_both() {
    let simulator = simulator().await;
    let mut setup = Setup::new(&simulator.url(), &[]);
    let keys = ["old", "new"].map(|name| {
        let path = setup.dir.path().join(name);
        std::fs::write(&path, format!("the-{name}-key-of-a-test-which-is-long-enough")).unwrap();
        text(&path).to_owned()
    });
    setup = setup.set(format!("store.key_file={}", keys[0]));
    let server = setup.start().await;
    let (first, second, booked, _) = queue_three(&server).await;
    server.stop().await;

    setup = setup.set(format!("store.key_file={}", keys[1]));
    let verify = |setup: &Setup, more: &[&str]| {
        let key = format!("store.key_file={}", keys[1]);
        seawall(setup, &[&["store", "verify", "--set", &key], more].concat())
    };
    let previous = format!("store.previous_key_file={}", keys[0]);
    let (without, with) =
        tokio::task::block_in_place(|| (verify(&setup, &[]), verify(&setup, &["--set", &previous])));
    assert_eq!(without.code, Some(1), "{without:?}");
    assert!(done(with).contains("pending  3"));
    setup.clone().set(previous).start().await.stop().await;

    // From then on the new one is enough.
    std::fs::remove_file(&keys[0]).unwrap();
    assert!(done(tokio::task::block_in_place(|| verify(&setup, &[]))).contains("pending  3"));
    let server = setup.start().await;
    open(&server).await;
    for id in [&first, &second, &booked] {
        assert_eventually!(server.state(id).await == "done");
    }
    assert_eq!(applied(&simulator).len(), 3);
    server.stop().await;
}

/// All files below a folder with their bytes.
fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            let bytes = std::fs::read(&path).unwrap();
            all.push((path, bytes));
        }
    }
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_running_seawall_it_changes_nothing_and_finds_what_is_damaged() {
    let simulator = simulator().await;
    let setup = Setup::new(&simulator.url(), &[]);
    let server = setup.start().await;
    let (_, _, booked, _) = queue_three(&server).await;
    server.stop().await;
    let inner = setup.clone();
    beside(move || {
        let before = files(&inner.data());
        let at = |name: &str| inner.dir.path().join(name);
        let run = |words: &[&str]| seawall(&inner, words);
        assert!(done(run(&["store", "verify", text(&inner.data())])).contains("sound"));
        assert!(done(run(&["store", "verify", text(&inner.data().join("queue"))])).contains("sound"));
        let made = run(&["store", "backup", "whole", "--with-secret"]);
        assert!(made.stderr.contains("whoever has it can read"), "{made:?}");
        done(made);
        refused(&run(&["store", "backup", "whole"]), &["something is there already"]);
        refused(&run(&["store", "backup", text(&inner.data().join("queue/mine"))]), &["store's own folder"]);
        done(run(&["store", "backup", "bare"]));
        assert_eq!(files(&inner.data()), before, "looking and copying changed something");
        let told = run(&["--output", "json", "store", "verify", "bare"]);
        let told: serde_json::Value = serde_json::from_str(&done(told)).unwrap();
        assert_eq!(told["records"]["pending"], 3, "{told}");

        // Damaged backups, each from a good one.
        let rows = std::fs::read(at("bare/rows")).unwrap();
        std::fs::write(at("bare/rows"), &rows[..rows.len() / 2]).unwrap();
        refused(&run(&["store", "verify", "bare"]), &["bare/rows is damaged", "were written"]);
        let mut flipped = rows.clone();
        flipped[rows.len() / 2] ^= 1;
        std::fs::write(at("bare/rows"), &flipped).unwrap();
        refused(&run(&["store", "restore", "bare", "--yes", "--set-aside"]), &["bare/rows is damaged"]);
        std::fs::write(at("bare/rows"), &rows).unwrap();
        let manifest = std::fs::read_to_string(at("bare/MANIFEST.json")).unwrap();
        std::fs::write(at("bare/MANIFEST.json"), manifest.replace("\"schema\": 1", "\"schema\": 2")).unwrap();
        refused(&run(&["store", "restore", "bare", "--yes", "--set-aside"]), &["schema 2", "newer version"]);
        std::fs::write(at("bare/MANIFEST.json"), &manifest).unwrap();
        assert_eq!(files(&inner.data()), before, "what was refused changed something");

        // Another key, no key, the right one.
        let secret = std::fs::read(inner.data().join("secret")).unwrap();
        let other = Setup::new("http://127.0.0.1:9", &[]);
        let at_other = |words: &[&str]| seawall(&other, words);
        let (bare, whole) = (at("bare"), at("whole"));
        refused(&at_other(&["store", "restore", text(&bare), "--yes"]), &["there is no key"]);
        std::fs::create_dir_all(other.data()).unwrap();
        let wrong = "wrapping MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\nhmac MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n";
        std::fs::write(other.data().join("secret"), wrong).unwrap();
        refused(&at_other(&["store", "verify", text(&bare)]), &["cannot be read with the key at hand"]);
        refused(&at_other(&["store", "restore", text(&whole), "--yes"]), &["not the one that was in use"]);
        assert!(!other.data().join("queue").exists() && !other.data().join("queue.restoring").exists());
        std::fs::remove_file(other.data().join("secret")).unwrap();
        let restored = at_other(&["store", "restore", text(&whole), "--yes"]);
        assert!(done(restored).contains("3 unsettled"));
        assert_eq!(std::fs::read(other.data().join("secret")).unwrap(), secret, "the backup's own");
        assert!(done(at_other(&["store", "verify"])).contains("pending  3"));

        // A damaged store: told with the place, and left as it is. One beside it is looked at itself.
        let aside = inner.data().join("queue-set-aside");
        for (path, bytes) in files(&inner.data().join("queue")) {
            let to = aside.join(path.strip_prefix(inner.data().join("queue")).unwrap());
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::write(to, bytes).unwrap();
        }
        std::fs::write(inner.data().join("queue/CURRENT"), "epoch-77\n").unwrap();
        assert!(done(run(&["store", "verify", text(&aside)])).contains("pending  3"));
        let ended = run(&["store", "verify"]);
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stdout.contains("PROBLEM") && ended.stdout.contains("CURRENT"), "{ended:?}");
        assert_eq!(std::fs::read_to_string(inner.data().join("queue/CURRENT")).unwrap(), "epoch-77\n");
    })
    .await;
    // And it serves.
    let server = setup.start().await;
    assert_eq!(server.state(&booked).await, "pending");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_manager_is_told_when_it_is_up_and_when_it_stops() {
    let simulator = simulator().await;
    let mut setup = Setup::new(&simulator.url(), &[]);
    let path = setup.dir.path().join("notify");
    let socket = Arc::new(UnixDatagram::bind(&path).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    setup.env.push(("NOTIFY_SOCKET".to_owned(), text(&path).to_owned()));
    let hear = || {
        let socket = socket.clone();
        beside(move || {
            let mut bytes = [0; 256];
            let length = socket.recv(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes[..length]).into_owned()
        })
    };
    let mut server = setup.start().await;
    assert_eq!(hear().await, "READY=1\n");
    server.signal(Signal::TERM);
    assert_eq!(hear().await, "STOPPING=1\n");
    assert_eq!(server.exit().await, Some(0));
}
