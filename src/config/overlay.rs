//! Pure. The layers over each other: defaults, file, environment, `--set`; each value remembers where it comes from.
//!
//! A layer is a [`Node`] tree. A value of a later layer takes the place of the earlier one's; tables are joined.
//! [`settle`] then holds the whole tree to the table of keys and makes [`Settings`] of what is good. It stops at
//! no problem, and a value that is bad is left at its default, so that the checks across fields can still run.

use super::diagnose::{Origin, Origins, Problem, suggestion};
use super::raw::{Settings, Size, Span};
use super::schema::{self, Field, Kind, Shape, join};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use toml::de::{DeTable, DeValue};

/// What environment variables begin with that set something.
pub(super) const PREFIX: &str = "SEAWALL__";

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Node {
    origin: Origin,
    content: Content,
}

#[derive(Debug, Clone)]
enum Content {
    Leaf(toml::Value),
    List(Vec<Node>),
    Table(BTreeMap<String, Entry>),
}

#[derive(Debug, Clone)]
struct Entry {
    /// Where the name stands.
    name_at: Origin,
    node: Node,
}

// === impl Node ===

impl Node {
    /// Nothing set.
    pub(super) fn empty() -> Self {
        Self { origin: Origin::Default, content: Content::Table(BTreeMap::new()) }
    }

    /// Puts a value in, with the tables around it. Where the file has something else than a table, that stays, for
    /// [`settle`] to refuse at its place.
    fn put(&mut self, path: &[&str], node: Node) {
        let Some((name, rest)) = path.split_first() else {
            *self = node;
            return;
        };
        let origin = node.origin.clone();
        if let Content::Table(entries) = &mut self.content {
            let entry = entries.entry((*name).to_owned()).or_insert_with(|| Entry {
                name_at: origin.clone(),
                node: Node { origin, content: Content::Table(BTreeMap::new()) },
            });
            entry.node.put(rest, node);
        }
    }
}

/// Reads the file's text. What is not TOML is a problem for each place.
pub(super) fn file(text: &str, path: &Arc<Path>, problems: &mut Vec<Problem>) -> Node {
    let places = Places { text, path };
    let (table, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return places.node(&DeValue::Table(table.get_ref().clone()), 0);
    }
    let mut last_line = 0;
    for error in errors {
        let origin = places.origin(error.span().map_or(0, |span| span.start));
        // What follows a mistake in its line says no more.
        let line = match origin {
            Origin::File { line, .. } => line,
            _ => 0,
        };
        if line != last_line {
            problems.push(Problem::at(origin, "", format!("this is not TOML: {}", error.message())));
        }
        last_line = line;
    }
    Node::empty()
}

struct Places<'a> {
    text: &'a str,
    path: &'a Arc<Path>,
}

// === impl Places ===

impl Places<'_> {
    fn origin(&self, offset: usize) -> Origin {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let before = before.strip_prefix('\u{feff}').unwrap_or(before);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Origin::File {
            path: self.path.clone(),
            line: 1 + before.bytes().filter(|byte| *byte == b'\n').count() as u32,
            column: 1 + before[line_start..].chars().count() as u32,
        }
    }

    fn node(&self, value: &DeValue<'_>, offset: usize) -> Node {
        let content = match value {
            DeValue::Table(table) => Content::Table(
                table
                    .iter()
                    .map(|(name, value)| {
                        let entry = Entry {
                            name_at: self.origin(name.span().start),
                            node: self.node(value.get_ref(), value.span().start),
                        };
                        (name.get_ref().to_string(), entry)
                    })
                    .collect(),
            ),
            DeValue::Array(values) => Content::List(
                values.iter().map(|value| self.node(value.get_ref(), value.span().start)).collect(),
            ),
            DeValue::String(text) => Content::Leaf(toml::Value::String(text.to_string())),
            DeValue::Integer(number) => {
                // What does not fit is too much for every key.
                let number = i64::from_str_radix(number.as_str(), number.radix()).unwrap_or(i64::MAX);
                Content::Leaf(toml::Value::Integer(number))
            }
            DeValue::Float(number) => {
                Content::Leaf(toml::Value::Float(number.as_str().parse().unwrap_or(f64::NAN)))
            }
            DeValue::Boolean(is_set) => Content::Leaf(toml::Value::Boolean(*is_set)),
            DeValue::Datetime(at) => Content::Leaf(toml::Value::Datetime(*at)),
        };
        Node { origin: self.origin(offset), content }
    }
}

/// Lays the environment's `SEAWALL__…` over the tree.
pub(super) fn environment(env: &BTreeMap<String, String>, root: &mut Node, problems: &mut Vec<Problem>) {
    for (name, text) in env.range(PREFIX.to_owned()..).take_while(|(name, _)| name.starts_with(PREFIX)) {
        let key = name[PREFIX.len()..].to_ascii_lowercase().replace("__", ".");
        set(root, &key, text, &Origin::Environment(Arc::from(name.as_str())), problems);
    }
}

/// Lays `--set section.key=value` over the tree.
pub(super) fn sets(sets: &[String], root: &mut Node, problems: &mut Vec<Problem>) {
    for set_text in sets {
        let Some((key, text)) = set_text.split_once('=') else {
            let origin = Origin::Set(Arc::from(set_text.trim()));
            let message = "a value is missing: write `--set section.key=value`".to_owned();
            problems.push(Problem::at(origin, "", message));
            continue;
        };
        let key = key.trim();
        set(root, key, text.trim(), &Origin::Set(Arc::from(key)), problems);
    }
}

fn set(root: &mut Node, key: &str, text: &str, origin: &Origin, problems: &mut Vec<Problem>) {
    let path: Vec<&str> = key.split('.').collect();
    let write = |key: &str| match origin {
        Origin::Environment(_) => as_variable(key),
        _ => key.to_owned(),
    };
    match schema::find(path.iter().copied()) {
        Some(Shape::Leaf(kind)) => {
            root.put(&path, Node { origin: origin.clone(), content: from_text(kind, text, origin) });
        }
        Some(Shape::Rows(_)) => {
            let what = format!("`[[{key}]]` is a list of tables and can be set in the file only");
            problems.push(Problem::of(origin.clone(), key, what));
        }
        Some(Shape::Section(fields) | Shape::Named(fields)) => {
            let mut what = "is a section and has no value of its own".to_owned();
            if let Some((first, _)) = fields.first() {
                let _ = write!(what, "; name a key in it, such as `{}`", write(&join(key, first)));
            }
            problems.push(Problem::of(origin.clone(), key, what));
        }
        None => {
            let mut outer = path.clone();
            while outer.pop().is_some() && !outer.is_empty() {
                if let Some(Shape::Rows(_)) = schema::find(outer.iter().copied()) {
                    let list = outer.join(".");
                    let what = format!("`[[{list}]]` is a list of tables and can be set in the file only");
                    problems.push(Problem::of(origin.clone(), key, what));
                    return;
                }
            }
            problems.push(unknown(origin.clone(), key, &path, &write));
        }
    }
}

/// `server.public_url` → `SEAWALL__SERVER__PUBLIC_URL`.
pub(super) fn as_variable(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "__").to_ascii_uppercase())
}

/// A text from environment or command line, by what is expected: a bare word is a string where a string is
/// expected, all else is TOML. What does not fit is kept as a string, for `settle` to refuse.
fn from_text(kind: Kind, text: &str, origin: &Origin) -> Content {
    let parsed = DeValue::parse(text).ok().map(|value| {
        let places = Places { text, path: &Arc::from(Path::new("")) };
        with_origin(places.node(value.get_ref(), 0), origin)
    });
    let takes_words = match kind {
        Kind::Bool | Kind::Count | Kind::Share | Kind::Texts => false,
        Kind::Text
        | Kind::Path
        | Kind::Variable
        | Kind::Hash
        | Kind::Span
        | Kind::Size
        | Kind::Address
        | Kind::Choice(_) => true,
    };
    match parsed {
        // A quoted string is what is in the quotes, everywhere.
        Some(Node { content: content @ Content::Leaf(toml::Value::String(_)), .. }) => content,
        Some(node) if !takes_words => node.content,
        _ => Content::Leaf(toml::Value::String(text.to_owned())),
    }
}

fn with_origin(node: Node, origin: &Origin) -> Node {
    let content = match node.content {
        Content::List(nodes) => {
            Content::List(nodes.into_iter().map(|node| with_origin(node, origin)).collect())
        }
        other => other,
    };
    Node { origin: origin.clone(), content }
}

fn unknown(origin: Origin, key: &str, path: &[&str], write: &dyn Fn(&str) -> String) -> Problem {
    const SECRETS: [&str; 5] = ["token", "secret", "password", "api_key", "key"];
    let mut message = format!("unknown key `{}`", write(key));
    let name = path.last().copied().unwrap_or_default();
    // The very word is no typing error.
    if let Some(like) = like(path).filter(|_| !SECRETS.contains(&name)) {
        let _ = write!(message, "; did you mean `{}`?", write(&like));
    } else if SECRETS.iter().any(|word| name.contains(word)) {
        message.push_str("; secrets are given by `token_file` or `token_env` only");
    }
    Problem::at(origin, key, message)
}

/// A known path that is like this one.
fn like(path: &[&str]) -> Option<String> {
    let (name, around) = path.split_last()?;
    let prefix = around.join(".");
    // First among those beside it, in lists and named tables too.
    let outer = around.iter().map(|name| name.split('[').next().unwrap_or(name));
    let mut shape = Shape::Section(schema::ROOT);
    let mut is_found = true;
    for name in outer {
        let fields = match shape {
            Shape::Section(fields) | Shape::Rows(fields) => fields,
            Shape::Named(fields) => {
                shape = Shape::Section(fields);
                continue;
            }
            Shape::Leaf(_) => &[],
        };
        let Some((_, inner)) = fields.iter().find(|(known, _)| *known == name) else {
            is_found = false;
            break;
        };
        shape = *inner;
    }
    if is_found
        && let Shape::Section(fields) | Shape::Rows(fields) = shape
        && let Some(like) = suggestion(name, fields.iter().map(|(name, _)| *name))
    {
        return Some(join(&prefix, like));
    }
    // Then the same name elsewhere, then what looks like the whole path.
    let paths = schema::paths();
    let mut same = paths.iter().filter(|path| path.rsplit('.').next() == Some(name));
    if let (Some(path), None) = (same.next(), same.next()) {
        return Some(path.clone());
    }
    suggestion(&path.join("."), paths.iter().map(String::as_str)).map(str::to_owned)
}

/// Holds the tree to the table of keys. Gives the settings that are good and the origin of each.
pub(super) fn settle(root: &Node, problems: &mut Vec<Problem>) -> (Settings, Origins) {
    let mut settler = Settler { origins: Origins::new(), problems };
    let table = match &root.content {
        Content::Table(entries) => settler.table("", schema::ROOT, entries),
        Content::Leaf(_) | Content::List(_) => toml::Table::new(),
    };
    let origins = settler.origins;
    match table.try_into::<Settings>() {
        Ok(settings) => (settings, origins),
        Err(error) => {
            // The table of keys and serde disagree: a bug, but one that must not pass in silence.
            problems.push(Problem::at(Origin::Default, "", format!("unreadable: {}", error.message())));
            (Settings::default(), origins)
        }
    }
}

struct Settler<'a> {
    origins: Origins,
    problems: &'a mut Vec<Problem>,
}

// === impl Settler ===

impl Settler<'_> {
    fn table(&mut self, prefix: &str, fields: &[Field], entries: &BTreeMap<String, Entry>) -> toml::Table {
        let mut table = toml::Table::new();
        for (name, entry) in entries {
            let key = join(prefix, name);
            let Some((_, shape)) = fields.iter().find(|(known, _)| known == name) else {
                let path: Vec<&str> = key.split('.').collect();
                self.problems.push(unknown(entry.name_at.clone(), &key, &path, &str::to_owned));
                continue;
            };
            if let Some(value) = self.value(&key, *shape, &entry.node) {
                table.insert(name.clone(), value);
            }
        }
        table
    }

    fn value(&mut self, key: &str, shape: Shape, node: &Node) -> Option<toml::Value> {
        match (shape, &node.content) {
            (Shape::Section(fields), Content::Table(entries)) => {
                Some(toml::Value::Table(self.table(key, fields, entries)))
            }
            (Shape::Named(fields), Content::Table(entries)) => {
                let mut tables = toml::Table::new();
                for (name, entry) in entries {
                    let key = join(key, name);
                    if !is_name(name) {
                        let what = "a name is made of letters, digits, `-` and `_`";
                        self.problems.push(Problem::of(entry.name_at.clone(), &key, what));
                        continue;
                    }
                    self.origins.insert(key.clone(), entry.name_at.clone());
                    if let Some(value) = self.value(&key, Shape::Section(fields), &entry.node) {
                        tables.insert(name.clone(), value);
                    }
                }
                Some(toml::Value::Table(tables))
            }
            (Shape::Rows(fields), Content::List(rows)) => {
                let rows = rows.iter().enumerate().filter_map(|(index, row)| {
                    let key = format!("{key}[{index}]");
                    self.origins.insert(key.clone(), row.origin.clone());
                    self.value(&key, Shape::Section(fields), row)
                });
                Some(toml::Value::Array(rows.collect()))
            }
            (Shape::Leaf(kind), content) => match leaf(kind, content) {
                Ok(value) => {
                    self.origins.insert(key.to_owned(), node.origin.clone());
                    Some(value)
                }
                Err(what) => {
                    self.problems.push(Problem::of(node.origin.clone(), key, what));
                    None
                }
            },
            (Shape::Rows(_), Content::Table(_)) => {
                let what = format!("expected a list of tables: write `[[{key}]]` with two brackets");
                self.problems.push(Problem::of(node.origin.clone(), key, what));
                None
            }
            (Shape::Section(_) | Shape::Named(_) | Shape::Rows(_), content) => {
                let found = found(content, true);
                let what = format!("expected a section such as `[{key}]`, found {found}");
                self.problems.push(Problem::of(node.origin.clone(), key, what));
                None
            }
        }
    }
}

/// Whether it can name an alias, a caller, an identity: it stands in logs, labels and keys.
pub(super) fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

fn leaf(kind: Kind, content: &Content) -> Result<toml::Value, String> {
    let refused =
        || format!("expected {}, found {}", kind.expected(), found(content, kind.is_near_secrets()));
    match (kind, content) {
        (Kind::Texts, Content::List(nodes)) => nodes
            .iter()
            .map(|node| match &node.content {
                Content::Leaf(value @ toml::Value::String(_)) => Ok(value.clone()),
                other => Err(format!(
                    "expected {}, found {} in the list",
                    kind.expected(),
                    found(other, kind.is_near_secrets())
                )),
            })
            .collect::<Result<_, _>>()
            .map(toml::Value::Array),
        (Kind::Bool, Content::Leaf(value @ toml::Value::Boolean(_)))
        | (Kind::Share, Content::Leaf(value @ toml::Value::Float(_))) => Ok(value.clone()),
        (Kind::Share, Content::Leaf(toml::Value::Integer(number))) => Ok(toml::Value::Float(*number as f64)),
        (Kind::Count, Content::Leaf(toml::Value::Integer(number))) if u32::try_from(*number).is_ok() => {
            Ok(toml::Value::Integer(*number))
        }
        (kind, Content::Leaf(value @ toml::Value::String(text))) => {
            let checked = match kind {
                Kind::Text | Kind::Path | Kind::Variable | Kind::Hash => Ok(()),
                Kind::Span => text.parse::<Span>().map(drop),
                Kind::Size => text.parse::<Size>().map(drop),
                Kind::Address => text.parse::<SocketAddr>().map(drop).map_err(|_| String::new()),
                Kind::Choice(words) => {
                    if words.contains(&text.as_str()) {
                        Ok(())
                    } else {
                        Err(suggestion(text, words.iter().copied())
                            .map(|word| format!("did you mean \"{word}\"?"))
                            .unwrap_or_default())
                    }
                }
                Kind::Bool | Kind::Count | Kind::Share | Kind::Texts => Err(String::new()),
            };
            match checked {
                Ok(()) => Ok(value.clone()),
                Err(more) if more.is_empty() => Err(refused()),
                Err(more) => Err(format!("{}; {more}", refused())),
            }
        }
        _ => Err(refused()),
    }
}

/// What stands there, for messages.
fn found(content: &Content, hides_text: bool) -> String {
    match content {
        Content::Leaf(toml::Value::String(_)) if hides_text => "a string".to_owned(),
        Content::Leaf(toml::Value::String(text)) => {
            let mut short: String = text.chars().take(40).collect();
            if short.len() < text.len() {
                short.push('…');
            }
            format!("{short:?}")
        }
        Content::Leaf(toml::Value::Integer(_) | toml::Value::Float(_)) if hides_text => "a number".to_owned(),
        Content::Leaf(toml::Value::Integer(i64::MAX)) => "a number that is too large".to_owned(),
        Content::Leaf(toml::Value::Integer(number)) => format!("integer {number}"),
        Content::Leaf(toml::Value::Float(number)) => format!("float {number}"),
        Content::Leaf(toml::Value::Boolean(is_set)) => format!("{is_set}"),
        Content::Leaf(toml::Value::Datetime(_)) => "a date".to_owned(),
        Content::Leaf(_) | Content::List(_) => "a list".to_owned(),
        Content::Table(_) => "a table".to_owned(),
    }
}
