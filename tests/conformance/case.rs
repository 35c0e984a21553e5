//! How cases are written; see `cases/README.md`.

use std::time::Duration;

/// One case.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) file: String,
    pub(crate) line: usize,
    /// A sentence.
    pub(crate) name: String,
    /// Such as `RFC 9111 §3`.
    pub(crate) section: String,
    /// Whether the RFC demands it, or we do.
    pub(crate) is_required: bool,
    pub(crate) steps: Vec<Step>,
}

#[derive(Debug)]
pub(crate) enum Step {
    Wait(Duration),
    Exchange(Exchange),
}

/// One request, what becomes of it at the origin, and what must come back.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) line: usize,
    pub(crate) method: String,
    /// What stands behind the case's own path.
    pub(crate) suffix: String,
    pub(crate) request: Message,
    pub(crate) reach: Reach,
    /// How the origin answers it.
    pub(crate) answer: Option<(u16, Message)>,
    pub(crate) seen: Vec<Expect>,
    pub(crate) expected: Vec<Expect>,
}

/// Fields and directions (`@name argument`) of a message.
#[derive(Debug, Default, Clone)]
pub(crate) struct Message {
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) directions: Vec<(String, String)>,
}

/// Whether a request reaches the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    Never,
    Must,
    May,
    /// It does, but the answer does not wait for it.
    Behind,
}

#[derive(Debug)]
pub(crate) enum Expect {
    Status(u16),
    Method(String),
    Present(String),
    Absent(String),
    Is(String, String),
    /// The body is that of the origin's answer in this exchange, counted from 1.
    From(usize),
    Direction(String, String),
}

// === impl Message ===

impl Message {
    /// The argument of a direction.
    pub(crate) fn direction(&self, name: &str) -> Option<&str> {
        self.directions.iter().find(|(own, _)| own == name).map(|(_, argument)| argument.as_str())
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.fields.iter().any(|(own, _)| own.eq_ignore_ascii_case(name))
    }
}

/// Reads a file of cases.
pub(crate) fn parse(file: &str, text: &str) -> Result<Vec<Case>, String> {
    let mut cases: Vec<Case> = Vec::new();
    for (line, text) in joined(text) {
        let wrong = |what: &str| format!("{file}:{line}: {what}: {text}");
        let (mark, rest) = text.split_once(' ').unwrap_or((text.as_str(), ""));
        let rest = rest.trim();
        if let "##" | "??" = mark {
            let (name, section) = rest
                .strip_suffix(']')
                .and_then(|rest| rest.rsplit_once(" ["))
                .ok_or_else(|| wrong("a case is `## sentence [RFC 0000 §0]`"))?;
            if !section.starts_with("RFC ") || !section.contains('§') {
                return Err(wrong("the section is `RFC 0000 §0`"));
            }
            cases.push(Case {
                file: file.to_owned(),
                line,
                name: name.to_owned(),
                section: section.to_owned(),
                is_required: mark == "##",
                steps: Vec::new(),
            });
            continue;
        }
        let case = cases.last_mut().ok_or_else(|| wrong("no case has begun"))?;
        let items: Vec<&str> = rest.split(" | ").map(str::trim).filter(|item| !item.is_empty()).collect();
        match mark {
            "wait" => {
                let seconds: f64 = rest.parse().map_err(|_| wrong("not a number of seconds"))?;
                case.steps.push(Step::Wait(Duration::from_secs_f64(seconds)));
                continue;
            }
            ">" => {
                let (first, items) = items.split_first().ok_or_else(|| wrong("no method"))?;
                let (method, suffix) = first.split_once(' ').unwrap_or((first, ""));
                case.steps.push(Step::Exchange(Exchange {
                    line,
                    method: method.to_owned(),
                    suffix: suffix.trim().to_owned(),
                    request: message(items).map_err(|item| wrong(&item))?,
                    reach: Reach::Never,
                    answer: None,
                    seen: Vec::new(),
                    expected: Vec::new(),
                }));
                continue;
            }
            _ => {}
        }
        let Some(Step::Exchange(exchange)) = case.steps.last_mut() else {
            return Err(wrong("no request stands before it"));
        };
        match mark {
            "<" | "<?" | "<&" => {
                exchange.reach = match mark {
                    "<" => Reach::Must,
                    "<?" => Reach::May,
                    _ => Reach::Behind,
                };
                let (status, items) = items.split_first().ok_or_else(|| wrong("no status"))?;
                let status = status.parse().map_err(|_| wrong("the first item is no status"))?;
                exchange.answer = Some((status, message(items).map_err(|item| wrong(&item))?));
            }
            "^" => exchange.seen.extend(items.iter().map(|item| expect(item))),
            "=" => exchange.expected.extend(items.iter().map(|item| expect(item))),
            _ => return Err(wrong("unknown mark")),
        }
    }
    match cases.iter().find(|case| !case.steps.iter().any(|step| matches!(step, Step::Exchange(_)))) {
        Some(case) => Err(format!("{file}:{}: it asks for nothing", case.line)),
        None => Ok(cases),
    }
}

/// Lines with those that go on (they begin with a space) joined to them; without comments and empty ones.
fn joined(text: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let is_comment = line.starts_with("# ") || line == "#";
        if is_comment || line.trim().is_empty() {
            continue;
        }
        match lines.last_mut() {
            Some((_, last)) if line.starts_with(' ') => {
                last.push_str(" | ");
                last.push_str(line.trim());
            }
            _ => lines.push((index + 1, line.trim_end().to_owned())),
        }
    }
    lines
}

fn message(items: &[&str]) -> Result<Message, String> {
    let mut message = Message::default();
    for item in items {
        if let Some(direction) = item.strip_prefix('@') {
            let (name, argument) = direction.split_once(' ').unwrap_or((direction, ""));
            message.directions.push((name.to_owned(), argument.to_owned()));
        } else {
            let (name, value) = item.split_once(':').ok_or_else(|| format!("`{item}` is no field"))?;
            message.fields.push((name.to_owned(), value.trim().to_owned()));
        }
    }
    Ok(message)
}

fn expect(item: &str) -> Expect {
    if let Ok(status) = item.parse() {
        Expect::Status(status)
    } else if let Some(number) = item.strip_prefix("from ").and_then(|number| number.parse().ok()) {
        Expect::From(number)
    } else if let Some(direction) = item.strip_prefix('@') {
        let (name, argument) = direction.split_once(' ').unwrap_or((direction, ""));
        Expect::Direction(name.to_owned(), argument.to_owned())
    } else if let Some(name) = item.strip_prefix('!') {
        Expect::Absent(name.to_owned())
    } else if let Some((name, value)) = item.split_once(':') {
        Expect::Is(name.to_owned(), value.trim().to_owned())
    } else if ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"].contains(&item) {
        Expect::Method(item.to_owned())
    } else {
        Expect::Present(item.to_owned())
    }
}
