//! Pure. The Prometheus text format 0.0.4.
//!
//! `prometheus-client` writes OpenMetrics, which `promtool check metrics` rejects and older scrapers do not read.
//! The two differ little: there a counter's family has the name without `_total`, units have lines of their own, and
//! the text ends with `# EOF`.

use prometheus_client::registry::Registry;

/// The content type of [`encode`]'s text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics of a registry.
pub fn encode(registry: &Registry) -> String {
    let mut open_metrics = String::new();
    if let Err(error) = prometheus_client::encoding::text::encode(&mut open_metrics, registry) {
        // Writing to a string fails only where a metric's own encoder does, which is a bug of ours.
        tracing::error!(%error, "metrics could not be encoded");
    }
    to_classic(&open_metrics)
}

fn to_classic(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help: Option<(&str, &str)> = None;
    for line in open_metrics.lines() {
        if line == "# EOF" || line.starts_with("# UNIT ") {
            continue;
        }
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').or(Some((rest, "")));
            continue;
        }
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let suffix = if kind == "counter" { "_total" } else { "" };
            if let Some((_, words)) = help.take_if(|(named, _)| *named == name) {
                text.extend(["# HELP ", name, suffix, " ", words, "\n"]);
            }
            text.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
            continue;
        }
        text.push_str(line);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;

    #[test]
    fn a_counter_has_its_suffix_in_type_and_help() {
        let mut registry = Registry::with_prefix("seawall");
        let counter = Counter::<u64>::default();
        registry.register("things", "Things seen", counter.clone());
        counter.inc();
        assert_eq!(
            encode(&registry),
            "# HELP seawall_things_total Things seen.\n# TYPE seawall_things_total counter\nseawall_things_total 1\n"
        );
    }
}
