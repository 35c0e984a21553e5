//! What is shown, and where.

use std::io::{IsTerminal, Write};

/// Data: standard output. A closed pipe is not an error (`seawall queue list | head`).
pub(super) fn data(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    if !text.ends_with('\n') {
        let _ = out.write_all(b"\n");
    }
    let _ = out.flush();
}

/// All else: standard error.
pub(super) fn say(text: &str) {
    let mut err = std::io::stderr().lock();
    let _ = writeln!(err, "{text}");
}

/// What went wrong.
pub(super) fn complain(text: &str) {
    let mut err = std::io::stderr().lock();
    let prefix = if err.is_terminal() && !no_color() { "\x1b[31mseawall:\x1b[0m" } else { "seawall:" };
    for line in text.lines() {
        let _ = writeln!(err, "{prefix} {line}");
    }
}

/// Whether colours are unwanted (<https://no-color.org>).
pub(super) fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// A table with aligned columns.
pub(super) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut row = String::new();
        for (cell, width) in cells.zip(&widths) {
            row.push_str(cell);
            row.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.chars().count()) + 2));
        }
        text.push_str(row.trim_end());
        text.push('\n');
    };
    line(&mut header.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    text
}

/// An instant for people: whole seconds.
pub(super) fn moment(value: &serde_json::Value) -> String {
    let Some(text) = value.as_str() else { return "-".to_owned() };
    match text.split_once('.') {
        Some((seconds, _)) => format!("{seconds}Z"),
        None => text.to_owned(),
    }
}

/// A number of seconds for people: `4m 10s`.
pub(super) fn seconds(seconds: f64) -> String {
    crate::config::raw::Span(std::time::Duration::from_secs(seconds.max(0.0) as u64)).to_string()
}

/// Waits a second, between two looks of `--watch`.
pub(super) fn pause() {
    if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_time().build() {
        runtime.block_on(tokio::time::sleep(std::time::Duration::from_secs(1)));
    }
}

/// Asks a yes-or-no question; without a terminal the answer is no.
pub(super) fn confirm(question: &str) -> bool {
    if !std::io::stdin().is_terminal() {
        say(&format!("{question} Not asked, since there is no terminal: pass --yes."));
        return false;
    }
    let mut err = std::io::stderr().lock();
    let _ = write!(err, "{question} [y/N] ");
    let _ = err.flush();
    let mut answer = String::new();
    let _ = std::io::stdin().read_line(&mut answer);
    matches!(answer.trim(), "y" | "Y" | "yes")
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_table_is_aligned() {
        let text = super::table(&["A", "LONG"], &[vec!["abc".into(), "x".into()]]);
        assert_eq!(text, "A    LONG\nabc  x\n");
    }
}
