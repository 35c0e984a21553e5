//! Holds the code to the table of rows in docs/ARCHITECTURE.md.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What breaks the table, and why it may: (importer, imported).
const EXCEPTIONS: &[(&str, &str)] = &[
    // Reloading is one function that tells all who keep settings; the admin API is one of its two callers.
    ("admin", "app"),
];

fn sources() -> Vec<(String, PathBuf, String)> {
    fn walk(dir: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, files);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    walk(&root, &mut files);
    files
        .into_iter()
        .map(|path| {
            let relative = path.strip_prefix(&root).unwrap();
            let first = relative.components().next().unwrap().as_os_str().to_string_lossy();
            let module = first.trim_end_matches(".rs").to_owned();
            let text = fs::read_to_string(&path).unwrap();
            (module, path.clone(), text)
        })
        .collect()
}

/// The code without what only its tests use.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text)
}

/// The top modules named by `crate::…` in code and `use` lines (comments and documentation aside).
fn imports(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in text.lines() {
        let code = line.split("//").next().unwrap_or_default();
        for part in code.split("crate::").skip(1) {
            if let Some(group) = part.strip_prefix('{') {
                let names = group
                    .split(['{', '}', ','])
                    .map(|name| name.split("::").next().unwrap_or_default().trim());
                found.extend(names.map(str::to_owned));
            } else {
                let name: String = part.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
                found.push(name);
            }
        }
    }
    found
}

/// Module → row, as the document has it. Row 2 modules are capabilities and never import each other.
fn rows() -> BTreeMap<&'static str, u8> {
    let document = include_str!("../../docs/ARCHITECTURE.md");
    let mut rows = BTreeMap::from([("main", 4), ("lib", 4)]);
    for line in document.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let ["", name, modules, _, ""] = cells[..] else { continue };
        let Some(row) = name.split(' ').next().and_then(|number| number.parse().ok()) else { continue };
        for module in modules.split(' ') {
            let module = module.strip_prefix('`').and_then(|module| module.strip_suffix('`'));
            let is_new = rows.insert(module.unwrap_or_else(|| panic!("what is this: {line}")), row).is_none();
            assert!(is_new, "twice in the table: {line}");
        }
    }
    rows
}

#[test]
fn modules_import_only_their_own_row_and_those_above() {
    let rows = rows();
    let count = |row: u8| rows.values().filter(|one| **one == row).count();
    assert!((0..=4).all(|row| count(row) >= 3), "the table of docs/ARCHITECTURE.md is not read: {rows:?}");
    let modules: BTreeSet<String> = sources().into_iter().map(|(module, ..)| module).collect();
    let gone: Vec<_> = rows.keys().filter(|module| !modules.contains(**module)).collect();
    assert!(gone.is_empty(), "docs/ARCHITECTURE.md has modules that are not there: {gone:?}");
    let mut wrong = Vec::new();
    for (module, path, text) in sources() {
        if path.ends_with("tests.rs") || path.components().any(|part| part.as_os_str() == "tests") {
            continue;
        }
        let row = *rows.get(module.as_str()).unwrap_or_else(|| {
            panic!("{module} stands in no row: add it to the table of docs/ARCHITECTURE.md")
        });
        for import in imports(without_tests(&text)) {
            let Some(imported) = rows.get(import.as_str()) else { continue };
            let is_own = import == module;
            let is_above = *imported < row;
            let is_beside = *imported == row && row != 2;
            let is_simulator_clean = module != "sim" || is_own || *imported <= 1;
            let is_named = EXCEPTIONS.contains(&(module.as_str(), import.as_str()));
            if !((is_own || is_above || is_beside) && is_simulator_clean || is_named) {
                wrong
                    .push(format!("{}: {module} (row {row}) uses {import} (row {imported})", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn pure_files_have_no_tokio_and_no_input_or_output() {
    let mut pure = 0;
    for (_, path, text) in sources() {
        if !text.starts_with("//! Pure.") {
            continue;
        }
        pure += 1;
        for (number, line) in without_tests(&text).lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for banned in
                ["tokio::", "std::fs", "std::net::Tcp", "std::thread", "std::io::", ".await", "async fn"]
            {
                // The instant is tokio's, so that paused tests move it; taking it as a value is pure.
                let is_instant = banned == "tokio::" && code.contains("tokio::time::Instant");
                assert!(
                    !code.contains(banned) || is_instant,
                    "{}:{}: a pure file uses {banned}",
                    path.display(),
                    number + 1
                );
            }
        }
    }
    assert!(pure >= 10, "only {pure} pure files were found: is the marker still `//! Pure.`?");
}

#[test]
fn the_test_of_the_rows_sees_what_it_should() {
    assert_eq!(
        imports("use crate::cache::{Cache};\n// crate::queue\nlet x = crate::breaker::y();"),
        ["cache", "breaker"]
    );
    assert!(imports("use crate::{http::Body, store};").contains(&"store".to_owned()));
    assert_eq!(without_tests("a\n#[cfg(test)]\nmod tests {\nuse crate::app;"), "a\n");
}
