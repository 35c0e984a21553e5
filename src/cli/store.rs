//! `seawall store verify|backup|restore`: the folder of queued writes.
//!
//! A folder that a running Seawall holds is looked at through its admin API only; else its lock is held meanwhile.

use super::args::{Operator, Output, StoreCommand};
use super::breaker::actor;
use super::{Exit, client, output, serve};
use crate::app::store_secrets;
use crate::clock::Clock;
use crate::config::{Snapshot, load};
use crate::queue::verify::Verification;
use crate::store::inspect::{self, Inspection, Problem, Rows, Scratch};
use crate::store::{Backup, BackupOrder, DataLock, Keys, Manifest, OpenError, SECRET_FILE, backup, fs};
use anyhow::{Context as _, anyhow, bail};
use http::Method;
use serde_json::{Value, json};
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Reading or copying a full queue takes a while.
const PATIENCE: Duration = Duration::from_secs(3600);

/// The folder of the store in the data folder.
const QUEUE: &str = "queue";

/// What a look found.
struct Report {
    epoch: Option<u64>,
    problems: Vec<Problem>,
    notes: Vec<String>,
    found: Option<Verification>,
}

pub(super) fn run(operator: &Operator, command: &StoreCommand) -> Exit {
    let source = match command {
        StoreCommand::Verify { source, .. }
        | StoreCommand::Backup { source, .. }
        | StoreCommand::Restore { source, .. } => source,
    };
    let snapshot = match load(&serve::load_args(source)) {
        Ok(snapshot) => snapshot,
        Err(problems) => return Exit::Config(problems.to_string()),
    };
    match command {
        StoreCommand::Verify { dir, scratch, .. } => {
            verify(operator, &snapshot, dir.as_deref(), scratch.as_deref())
        }
        StoreCommand::Backup { dir, with_secret, scratch, .. } => {
            make(operator, &snapshot, dir, *with_secret, scratch.as_deref())
        }
        StoreCommand::Restore { dir, set_aside, despite_problems, despite_other_secret, .. } => {
            restore(operator, &snapshot, dir, *set_aside, *despite_problems, *despite_other_secret).into()
        }
    }
}

// === Verifying ===

fn verify(operator: &Operator, snapshot: &Snapshot, dir: Option<&Path>, scratch: Option<&Path>) -> Exit {
    if let Some(dir) = dir.filter(|dir| backup::is_backup(dir)) {
        return look_at_backup(snapshot, dir, scratch)
            .map_or_else(Exit::Failed, |report| tell(operator, &report));
    }
    let (data_dir, store) = match dir {
        // A store itself, such as one that was set aside.
        Some(dir) if dir.join("CURRENT").is_file() && !dir.join(QUEUE).is_dir() => {
            (fs::parent(dir).to_owned(), dir.to_owned())
        }
        Some(dir) => (dir.to_owned(), dir.join(QUEUE)),
        None if !operator.admin.is_empty() => return verify_running(operator),
        None => (snapshot.settings.data_dir.clone(), snapshot.settings.data_dir.join(QUEUE)),
    };
    // One that was set aside is nobody's.
    let is_in_place = store.file_name() == Some(QUEUE.as_ref());
    let _lock = match is_in_place.then(|| DataLock::hold_existing(&data_dir)).transpose() {
        Ok(lock) => lock,
        Err(OpenError::Locked { .. }) if dir.is_none() => return verify_running(&local(operator, snapshot)),
        Err(error) => return Exit::Failed(error.into()),
    };
    look_at_store(snapshot, &store, &data_dir.join(SECRET_FILE), scratch)
        .map_or_else(Exit::Failed, |report| tell(operator, &report))
}

fn look_at_store(
    snapshot: &Snapshot,
    dir: &Path,
    secret: &Path,
    scratch: Option<&Path>,
) -> anyhow::Result<Report> {
    if !dir.is_dir() {
        bail!("{} is not there: name a data folder, or a backup", dir.display());
    }
    let keys = keys(snapshot, secret)?;
    let Inspection { epoch, problems, notes, rows } = Inspection::of_store(dir, &keys, room(scratch)?)?;
    let mut report = Report { epoch, problems, notes, found: None };
    if let Some(rows) = rows {
        report.take(Verification::of(&mut |tree, visit| rows.scan(tree, visit))?);
    }
    Ok(report)
}

fn look_at_backup(snapshot: &Snapshot, dir: &Path, scratch: Option<&Path>) -> anyhow::Result<Report> {
    let backup = Backup::open(dir)?;
    let (keys, _) = keys_of_backup(snapshot, &backup)?;
    let mut report = Report { epoch: None, problems: Vec::new(), notes: Vec::new(), found: None };
    let manifest = &backup.manifest;
    report.notes.push(format!("a backup of {}, by Seawall {}", manifest.made_at, manifest.seawall));
    if backup::key_check(&keys) != manifest.key_check {
        report.notes.push("the secret for HMACs at hand is not the one that was in use".to_owned());
    }
    let rows = Rows::of_backup(&backup, &keys, room(scratch)?)?;
    report.take(Verification::of(&mut |tree, visit| rows.scan(tree, visit))?);
    Ok(report)
}

fn verify_running(operator: &Operator) -> Exit {
    let all_sound = Cell::new(true);
    let exit = client::each_within(
        PATIENCE,
        operator,
        async |admin| {
            let found = admin.send(Method::GET, "/api/v1/store/verify", None).await?;
            all_sound.set(all_sound.get() && found["is_sound"] == true);
            Ok(found)
        },
        table,
    );
    match exit {
        Exit::Done if !all_sound.get() => Exit::Failed(anyhow!("something is wrong with the store")),
        exit => exit,
    }
}

fn tell(operator: &Operator, report: &Report) -> Exit {
    let value = report.to_value();
    output::data(&match operator.output {
        Output::Json => serde_json::to_string_pretty(&value).unwrap_or_default(),
        Output::Table => table(&value),
    });
    if report.problems.is_empty() {
        Exit::Done
    } else {
        Exit::Failed(anyhow!("something is wrong with the store"))
    }
}

fn table(value: &Value) -> String {
    let mut text = String::new();
    let mut line = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    for note in value["notes"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        line(&format!("note: {note}"));
    }
    if value["is_rolled_back"] == true {
        line(
            "note: it is older than what happened; at the next start nothing unsettled is sent before you decided",
        );
    }
    let count = |value: &Value| value.as_u64().unwrap_or_default();
    let rows: Vec<Vec<String>> = value["records"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(state, number)| vec![state.clone(), count(number).to_string()])
        .collect();
    line(output::table(&["STATE", "RECORDS"], &rows).trim_end());
    if count(&value["held"]) > 0 {
        line(&format!("{} of them held by an operator", count(&value["held"])));
    }
    if count(&value["orphans"]) > 0 {
        line(&format!("{} values belong to no record; they do no harm", count(&value["orphans"])));
    }
    let problems = value["problems"].as_array().map_or(&[][..], Vec::as_slice);
    for problem in problems {
        let part = |name: &str| problem[name].as_str().unwrap_or_default();
        line(&format!("PROBLEM {}: {}", part("place"), part("what")));
    }
    if count(&value["more_problems"]) > 0 {
        line(&format!("… and {} more", count(&value["more_problems"])));
    }
    if problems.is_empty() {
        line("sound");
    }
    text
}

// === impl Report ===

impl Report {
    fn take(&mut self, mut found: Verification) {
        self.problems.append(&mut found.problems);
        self.found = Some(found);
    }

    fn to_value(&self) -> Value {
        let mut value = json!({ "is_sound": self.problems.is_empty(), "epoch": self.epoch });
        if let (Some(value), Value::Object(found)) = (value.as_object_mut(), json!(self.found)) {
            value.extend(found);
        }
        value["problems"] =
            self.problems.iter().map(|one| json!({ "place": one.place, "what": one.what })).collect();
        value["notes"] = json!(self.notes);
        value
    }
}

// === Backing up ===

fn make(
    operator: &Operator,
    snapshot: &Snapshot,
    dir: &Path,
    with_secret: bool,
    scratch: Option<&Path>,
) -> Exit {
    let to = match std::path::absolute(dir) {
        Ok(to) => to,
        Err(error) => return Exit::Usage(format!("{}: {error}", dir.display())),
    };
    if !operator.admin.is_empty() {
        return make_running(operator, &to, with_secret);
    }
    let data_dir = &snapshot.settings.data_dir;
    match DataLock::hold_existing(data_dir) {
        Err(OpenError::Locked { .. }) => make_running(&local(operator, snapshot), &to, with_secret),
        Err(error) => Exit::Failed(error.into()),
        Ok(_lock) => make_offline(snapshot, &to, with_secret, scratch).into(),
    }
}

fn make_running(operator: &Operator, to: &Path, with_secret: bool) -> Exit {
    let body = json!({ "path": to, "with_secret": with_secret, "actor": actor() });
    client::each_within(
        PATIENCE,
        operator,
        async |admin| {
            let made = admin.send(Method::POST, "/api/v1/store/backup", Some(body.clone())).await?;
            say_what_is_missing(with_secret, made["key_is_configured"] == true);
            Ok(made)
        },
        |made| {
            format!("{} values in {}", made["manifest"]["rows"], made["path"].as_str().unwrap_or_default())
        },
    )
}

fn make_offline(
    snapshot: &Snapshot,
    to: &Path,
    with_secret: bool,
    scratch: Option<&Path>,
) -> anyhow::Result<()> {
    let data_dir = &snapshot.settings.data_dir;
    let dir = data_dir.join(QUEUE);
    if !dir.is_dir() {
        bail!("{} is not there: there is nothing to back up", dir.display());
    }
    let secret = data_dir.join(SECRET_FILE);
    let keys = keys(snapshot, &secret)?;
    let inspection = Inspection::of_store(&dir, &keys, room(scratch)?)?;
    for problem in &inspection.problems {
        output::say(&format!("warning: {}: {}", problem.place, problem.what));
    }
    let rows = inspection.rows.ok_or_else(|| anyhow!("there is no database to back up"))?;
    let order =
        BackupOrder { to: to.to_owned(), secret: with_secret.then_some(secret), now: Clock::system().now() };
    let manifest: Manifest = rows.backup(&dir, &keys, &order)?;
    say_what_is_missing(with_secret, snapshot.store_key.is_some());
    output::data(&format!("{} values in {}", manifest.rows, to.display()));
    Ok(())
}

fn say_what_is_missing(with_secret: bool, key_is_configured: bool) {
    output::say(match (with_secret, key_is_configured) {
        (true, false) => {
            "The key is in this backup (`secret`): whoever has it can read all queued writes and credentials in it."
        }
        (true, true) => {
            "`secret` is in this backup, the key that store.key_file or store.key_env names is not: keep that too. \
             Without both it cannot be restored in full."
        }
        (false, false) => {
            "The key is NOT in this backup: keep a copy of the file `secret` of the data folder in another place. \
             Without it the backup cannot be read."
        }
        (false, true) => {
            "No key is in this backup: keep what store.key_file or store.key_env names, and the file `secret` of the \
             data folder, in another place. Without them it cannot be restored."
        }
    });
}

// === Restoring ===

fn restore(
    operator: &Operator,
    snapshot: &Snapshot,
    dir: &Path,
    set_aside: bool,
    despite_problems: bool,
    despite_other_secret: bool,
) -> anyhow::Result<()> {
    let data_dir = &snapshot.settings.data_dir;
    let place = data_dir.join(QUEUE);
    let backup = Backup::open(dir)?;
    let question = format!(
        "Restore {} values of {} into {}? Whatever was unsettled then is not sent before you have decided about it; \
         writes that were accepted later are not in it.",
        backup.manifest.rows,
        backup.manifest.made_at,
        place.display()
    );
    if !operator.yes && !output::confirm(&question) {
        bail!("nothing was changed");
    }
    let lock = DataLock::acquire(data_dir, Duration::ZERO).context("stop Seawall before you restore")?;
    inspect::give_to_owner_of(data_dir, lock.path())?;
    inspect::check_place(&place, set_aside)?;
    let (keys, brings_secret) = keys_of_backup(snapshot, &backup)?;
    if backup::key_check(&keys) != backup.manifest.key_check && !despite_other_secret {
        bail!(
            "the file {} is not the one that was in use when the backup was made: callers would not be recognised, and \
             a repeat could be sent twice. Put the old one there, or say --despite-other-secret",
            data_dir.join(SECRET_FILE).display()
        );
    }
    let rows = Rows::of_backup(&backup, &keys, Scratch::beside(&place)?)?;
    let found = Verification::of(&mut |tree, visit| rows.scan(tree, visit))?;
    for problem in &found.problems {
        output::say(&format!("PROBLEM {}: {}", problem.place, problem.what));
    }
    if !found.is_sound() && !despite_problems {
        bail!(
            "something was wrong in the store when the backup was made; --despite-problems restores it as it was"
        );
    }
    if let Some(secret) = brings_secret {
        let to = data_dir.join(SECRET_FILE);
        fs::durable_write_private(&to, &std::fs::read(&secret)?)?;
        inspect::give_to_owner_of(data_dir, &to)?;
        output::say(&format!("{} is the backup's from now on.", to.display()));
    }
    let aside = rows.install(&place, set_aside, Clock::system().now())?;
    if let Some(aside) = aside {
        output::say(&format!(
            "What was there is in {}; delete it when you do not need it any more.",
            aside.display()
        ));
    }
    output::data(&format!(
        "restored into {}: {} unsettled writes wait for a decision after the start (seawall queue list; then queue \
         release or resolve)",
        place.display(),
        found.unsettled()
    ));
    Ok(())
}

// === What they share ===

fn keys(snapshot: &Snapshot, secret: &Path) -> anyhow::Result<Keys> {
    existing(snapshot, secret)?.ok_or_else(|| {
        anyhow!(
            "there is no key: {} is not there, or lacks a part; put the one that was in use there",
            secret.display()
        )
    })
}

/// The keys for a backup, and the file of secrets to take over from it, where the data folder has none.
fn keys_of_backup(snapshot: &Snapshot, backup: &Backup) -> anyhow::Result<(Keys, Option<PathBuf>)> {
    let own = snapshot.settings.data_dir.join(SECRET_FILE);
    match backup.secret() {
        Some(secret) if !own.exists() => Ok((keys(snapshot, &secret)?, Some(secret))),
        _ => Ok((keys(snapshot, &own)?, None)),
    }
}

fn existing(snapshot: &Snapshot, secret: &Path) -> anyhow::Result<Option<Keys>> {
    Ok(Keys::existing(store_secrets(snapshot), secret)?)
}

fn room(scratch: Option<&Path>) -> anyhow::Result<Scratch> {
    let dir = scratch.map_or_else(std::env::temp_dir, Path::to_owned);
    Ok(Scratch::inside(&dir)?)
}

/// The admin API of the Seawall that has this configuration.
fn local(operator: &Operator, snapshot: &Snapshot) -> Operator {
    let mut operator = operator.clone();
    let mut address = snapshot.settings.admin.listen;
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            std::net::Ipv4Addr::LOCALHOST.into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    operator.admin = vec![format!("http://{address}")];
    operator.token.clone_from(&snapshot.admin_token);
    operator
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use crate::config::{Secret, Settings};
    use clap::Parser as _;

    #[test]
    fn the_admin_api_of_the_configuration_is_asked_with_its_token() {
        let mut snapshot = Snapshot::of(Settings::default()).unwrap();
        snapshot.admin_token = Some(Secret::new("from the variable that admin.token_env names"));
        let operator = Cli::try_parse_from(["seawall", "store", "verify"]).unwrap().operator;
        let local = local(&operator, &snapshot);
        assert_eq!(local.admin, ["http://127.0.0.1:8461"]);
        assert!(local.token == snapshot.admin_token);
    }
}
