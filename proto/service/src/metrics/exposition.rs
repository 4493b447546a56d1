//! Reads the OpenMetrics text format as the encoder writes it: for what else is to see the same numbers.
//!
//! (The crates that read it are under licences that we can't use, or know only Prometheus's older format.)

use super::Kind;

/// Instruments of one name.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// Without `_total` and the like.
    pub name: String,
    /// What kind of numbers.
    pub kind: Kind,
    /// What it means.
    pub help: String,
    /// By labels.
    pub series: Vec<Series>,
}

/// One instrument.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Names and values, without `le`.
    pub labels: Vec<(String, String)>,
    /// Its value now.
    pub value: Value,
}

/// What an instrument says.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of a counter, a gauge or an info.
    Number(f64),
    /// Of a histogram.
    Distribution(Distribution),
}

/// What a histogram says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Distribution {
    /// Sum of all observations.
    pub sum: f64,
    /// Number of observations.
    pub count: u64,
    /// In the order of their bounds; the last one's is infinite.
    pub buckets: Vec<Bucket>,
}

/// What was observed up to a bound.
#[derive(Clone, Debug, PartialEq)]
pub struct Bucket {
    /// The bound itself is in it.
    pub bound: f64,
    /// With what lies in lower buckets.
    pub cumulative: u64,
    /// One observation of it.
    pub exemplar: Option<Exemplar>,
}

/// An observation that can be looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct Exemplar {
    /// Where it is to be found.
    pub labels: Vec<(String, String)>,
    /// What was observed.
    pub value: f64,
    /// When, in seconds since 1970.
    pub at: Option<f64>,
}

/// A line that can't be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {number} of the metrics can't be understood: {line}")]
pub struct Unreadable {
    /// From 1.
    pub number: usize,
    /// The line.
    pub line: String,
}

/// Reads a whole exposition.
pub fn read(text: &str) -> Result<Vec<Family>, Unreadable> {
    let mut families: Vec<Family> = Vec::new();
    let mut help = (String::new(), String::new());
    for (index, line) in text.lines().enumerate() {
        let done = match line.strip_prefix("# ") {
            Some(comment) => comment_line(comment, &mut help, &mut families),
            None => sample_line(line, families.last_mut()),
        };
        done.ok_or_else(|| Unreadable { number: index + 1, line: line.to_owned() })?;
    }
    Ok(families)
}

fn comment_line(comment: &str, help: &mut (String, String), families: &mut Vec<Family>) -> Option<()> {
    if comment == "EOF" {
        return Some(());
    }
    let mut words = comment.splitn(3, ' ');
    let (word, name, rest) = (words.next()?, words.next()?, words.next()?);
    match word {
        "HELP" => *help = (name.to_owned(), rest.to_owned()),
        "TYPE" => {
            let help = if help.0 == name { std::mem::take(&mut help.1) } else { String::new() };
            families.push(Family {
                name: name.to_owned(),
                kind: Kind::parse(rest)?,
                help,
                series: Vec::new(),
            });
        }
        "UNIT" => {}
        _ => return None,
    }
    Some(())
}

fn sample_line(line: &str, family: Option<&mut Family>) -> Option<()> {
    let family = family?;
    let rest = line.strip_prefix(family.name.as_str())?;
    let name_end = rest.find(['{', ' '])?;
    let suffix = &rest[..name_end];
    let (mut labels, rest) = labels(&rest[name_end..])?;
    let (value, exemplar) = match rest.trim_start().split_once(" # ") {
        Some((value, text)) => (value, Some(exemplar(text)?)),
        None => (rest.trim_start(), None),
    };
    if family.kind != Kind::Histogram {
        let expected = match family.kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::Gauge | Kind::Histogram => "",
        };
        if suffix != expected {
            return None;
        }
        family.series.push(Series { labels, value: Value::Number(number(value)?) });
        return Some(());
    }
    let bound = labels.iter().position(|(name, _)| name == "le").map(|at| labels.remove(at).1);
    // The encoder begins each series with its sum.
    if suffix == "_sum" {
        let value = Value::Distribution(Distribution { sum: number(value)?, ..Distribution::default() });
        family.series.push(Series { labels, value });
        return Some(());
    }
    let Value::Distribution(distribution) = &mut family.series.last_mut()?.value else { return None };
    match suffix {
        "_count" => distribution.count = value.parse().ok()?,
        "_bucket" => distribution.buckets.push(Bucket {
            bound: number(&bound?)?,
            cumulative: value.parse().ok()?,
            exemplar,
        }),
        _ => return None,
    }
    Some(())
}

fn exemplar(text: &str) -> Option<Exemplar> {
    let (labels, rest) = labels(text)?;
    let mut words = rest.split_whitespace();
    Some(Exemplar {
        labels,
        value: number(words.next()?)?,
        at: match words.next() {
            Some(word) => Some(number(word)?),
            None => None,
        },
    })
}

fn number(text: &str) -> Option<f64> {
    match text {
        "+Inf" => Some(f64::INFINITY),
        "-Inf" => Some(f64::NEG_INFINITY),
        text => text.parse().ok(),
    }
}

/// Labels in braces, if there are any, and what comes behind them. The encoder escapes nothing, and no label of ours holds
/// a quote.
fn labels(text: &str) -> Option<(Vec<(String, String)>, &str)> {
    let mut labels = Vec::new();
    let Some(mut rest) = text.strip_prefix('{') else { return Some((labels, text)) };
    loop {
        if let Some(behind) = rest.strip_prefix('}') {
            return Some((labels, behind));
        }
        let (name, quoted) = rest.split_once("=\"")?;
        let (value, behind) = quoted.split_once('"')?;
        labels.push((name.trim_start_matches(',').to_owned(), value.to_owned()));
        rest = behind;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus_client::{
        metrics::{counter::Counter, family::Family as Instruments, gauge::Gauge},
        registry::Unit,
    };

    use super::*;
    use crate::{
        metrics::{Durations, Label, Metrics},
        trace::TraceContext,
    };

    fn family<'a>(families: &'a [Family], name: &str) -> &'a Family {
        families.iter().find(|family| family.name == name).unwrap_or_else(|| panic!("no {name}"))
    }

    #[test]
    fn what_the_encoder_writes_is_read_as_it_was_measured() {
        let metrics = Metrics::default();
        let counter = Instruments::<Vec<(String, String)>, Counter>::default();
        let (gauge, durations) = (Gauge::<f64, std::sync::atomic::AtomicU64>::default(), Durations::new());
        metrics.register(|registry| {
            let labels = vec![Label::bounded("a", "test"), Label::bounded("b", "test")];
            registry.family("test_balls", "Balls, \"red\" ones", labels, counter.clone());
            registry.register("test_heat", "Heat", gauge.clone());
            registry.register_with_unit("test_wait", "Waits", Unit::Seconds, durations.clone());
        });
        let labels = vec![("a".to_owned(), "x,y}=1 # ".to_owned()), ("b".to_owned(), String::new())];
        counter.get_or_create(&labels).inc_by(7);
        gauge.set(-1.5);
        let trace = TraceContext::parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        durations.observe_traced(Duration::from_millis(4), trace.as_ref());
        durations.observe(Duration::from_secs(100));
        let families = metrics.read();

        let balls = family(&families, "test_balls");
        assert_eq!((balls.kind, balls.help.as_str()), (Kind::Counter, "Balls, \"red\" ones."));
        assert_eq!(balls.series, [Series { labels, value: Value::Number(7.0) }]);
        assert_eq!(family(&families, "test_heat").series[0].value, Value::Number(-1.5));
        let Value::Distribution(waits) = &family(&families, "test_wait_seconds").series[0].value else {
            panic!("no distribution")
        };
        assert_eq!((waits.count, waits.sum), (2, 100.004));
        let five = waits.buckets.iter().find(|bucket| (bucket.bound - 0.005).abs() < 1e-9).unwrap();
        assert_eq!((five.cumulative, five.exemplar.as_ref().unwrap().value), (1, 0.004));
        assert_eq!(five.exemplar.as_ref().unwrap().labels[0].1, "0af7651916cd43dd8448eb211c80319c");
        let last = waits.buckets.last().unwrap();
        assert_eq!((last.bound, last.cumulative), (f64::INFINITY, 2));
        assert_eq!(family(&families, "tbmq_service_build").kind, Kind::Info);
    }

    #[test]
    fn what_is_no_exposition_is_refused_with_its_line() {
        for bad in ["nonsense", "# TYPE a dance", "# TYPE a counter\na 1", "# TYPE a gauge\na{b=\"c} 1"] {
            let error = read(bad).unwrap_err();
            assert_eq!(error.line, bad.lines().last().unwrap());
        }
    }
}
