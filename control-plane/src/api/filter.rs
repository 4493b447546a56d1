//! Filters of lists (AIP-160): a text becomes a tree that was checked against the fields of an integration.
//!
//! As in AIP-160, OR binds tighter than AND, and what stands side by side is joined by AND. A comparison with something
//! that is absent is false, so `labels.site != "x"` holds only for integrations with that label.
//!
//! A parser of our own: the language is part of our API, and the published ones are young, without limits, or abandoned.

use prost_types::Timestamp;
use tbmq_proto::control::integration_status::Phase;

use super::integration::timestamp;
use crate::store::Row;

/// Bytes of a filter.
const BYTES_MAX: usize = 4_096;

/// Parentheses within parentheses.
const DEPTH_MAX: usize = 16;

/// Comparisons of a filter.
const TESTS_MAX: usize = 64;

const FIELDS: &str = "display_name, type, enabled, description, labels, labels.<key>, revision, create_time, \
                      update_time, disconnected_time, topic_filters, status.phase, status.reason";

/// Why a text is no filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at character {at}: {text}")]
pub(super) struct Problem {
    /// Counted from 1.
    at: usize,
    text: String,
}

/// A filter; the empty one lets everything pass.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Filter {
    /// All of them must hold.
    terms: Vec<Node>,
}

/// What a filter looks at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subject<'a> {
    pub(super) row: &'a Row,
    /// Empty is enough unless [`Filter::needs_topic_filters`].
    pub(super) topic_filters: &'a [String],
    /// Phase and reason; `None` is enough unless [`Filter::needs_status`].
    pub(super) status: Option<(Phase, &'a str)>,
}

/// What the database can look at in place of the filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pushed {
    pub(super) name: Option<String>,
    pub(super) kind: Option<String>,
    pub(super) enabled: Option<bool>,
    /// Nothing is left to be looked at.
    pub(super) is_whole: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Node {
    All(Vec<Node>),
    Any(Vec<Node>),
    Not(Box<Node>),
    Test { field: Field, test: Test },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Field {
    DisplayName,
    Type,
    Enabled,
    Description,
    Labels,
    Label(String),
    Revision,
    CreateTime,
    UpdateTime,
    DisconnectedTime,
    TopicFilters,
    Phase,
    Reason,
}

#[derive(Clone, Debug, PartialEq)]
enum Test {
    /// It is there and not empty.
    Present,
    Text(Comparator, Pattern),
    Bool(Comparator, bool),
    Number(Comparator, u64),
    Time(Comparator, Timestamp),
    Phase(Comparator, Phase),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparator {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Has,
}

/// A text, perhaps with a wildcard at its ends.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    text: String,
    any_before: bool,
    any_after: bool,
}

impl Filter {
    /// Reads a filter.
    pub(super) fn parse(text: &str) -> Result<Self, Problem> {
        if text.len() > BYTES_MAX {
            let text = format!("the filter has {} bytes, more than {BYTES_MAX}", text.len());
            return Err(Problem { at: 1, text });
        }
        let mut parser = Parser { text, at: 0, depth: 0, tests: 0 };
        parser.skip_space();
        if parser.rest().is_empty() {
            return Ok(Self { terms: Vec::new() });
        }
        let root = parser.expression()?;
        if parser.rest().starts_with(')') {
            return Err(parser.problem("this `)` closes nothing"));
        }
        let terms = match root {
            Node::All(terms) => terms,
            root => vec![root],
        };
        Ok(Self { terms })
    }

    pub(super) fn passes(&self, subject: Subject<'_>) -> bool {
        self.terms.iter().all(|term| term.passes(subject))
    }

    pub(super) fn needs_status(&self) -> bool {
        self.any_field(|field| matches!(field, Field::Phase | Field::Reason))
    }

    pub(super) fn needs_topic_filters(&self) -> bool {
        self.any_field(|field| *field == Field::TopicFilters)
    }

    /// What of it the database can look at, exactly as it is looked at here.
    pub(super) fn pushed(&self) -> Pushed {
        let mut pushed = Pushed { is_whole: true, ..Pushed::default() };
        for term in &self.terms {
            let taken = match term {
                Node::Test { field: Field::DisplayName, test: Test::Text(Comparator::Equal, is) } => {
                    put(&mut pushed.name, is.whole())
                }
                Node::Test { field: Field::Type, test: Test::Text(Comparator::Equal, is) } => {
                    put(&mut pushed.kind, is.whole())
                }
                Node::Test { test: Test::Bool(comparator, is), .. } => {
                    put(&mut pushed.enabled, Some(*is == (*comparator == Comparator::Equal)))
                }
                _ => false,
            };
            pushed.is_whole &= taken;
        }
        pushed
    }

    fn any_field(&self, matches: impl Fn(&Field) -> bool) -> bool {
        let mut open: Vec<&Node> = self.terms.iter().collect();
        while let Some(node) = open.pop() {
            match node {
                Node::All(nodes) | Node::Any(nodes) => open.extend(nodes),
                Node::Not(node) => open.push(node),
                Node::Test { field, .. } if matches(field) => return true,
                Node::Test { .. } => {}
            }
        }
        false
    }
}

/// Puts a condition where there is none yet.
fn put<T>(place: &mut Option<T>, condition: Option<T>) -> bool {
    if place.is_some() || condition.is_none() {
        return false;
    }
    *place = condition;
    true
}

impl Node {
    fn passes(&self, subject: Subject<'_>) -> bool {
        match self {
            Self::All(nodes) => nodes.iter().all(|node| node.passes(subject)),
            Self::Any(nodes) => nodes.iter().any(|node| node.passes(subject)),
            Self::Not(node) => !node.passes(subject),
            Self::Test { field, test } => field.passes(test, subject),
        }
    }
}

impl Field {
    fn passes(&self, test: &Test, Subject { row, topic_filters, status }: Subject<'_>) -> bool {
        let ms = match self {
            Self::DisplayName => return test.of_text(Some(&row.name)),
            Self::Type => return test.of_text(Some(row.kind.as_str())),
            Self::Description => return test.of_text(Some(&row.description)),
            Self::Label(key) => return test.of_label(row.labels.get(key)),
            Self::Reason => return test.of_text(status.map(|(_, reason)| reason)),
            Self::Labels => return test.of_any(row.labels.keys()),
            Self::TopicFilters => return test.of_any(topic_filters.iter()),
            Self::Enabled => {
                return matches!(test, Test::Bool(comparator, is) if comparator.holds(&row.enabled, is));
            }
            Self::Revision => {
                return matches!(test, Test::Number(comparator, is) if comparator.holds(&row.revision, is));
            }
            Self::Phase => {
                let is = |phase: &Phase| status.is_some_and(|(held, _)| held == *phase);
                return match test {
                    Test::Phase(Comparator::Unequal, phase) => status.is_some() && !is(phase),
                    Test::Phase(_, phase) => is(phase),
                    Test::Present => status.is_some(),
                    _ => false,
                };
            }
            Self::CreateTime => Some(row.created_ms),
            Self::UpdateTime => Some(row.updated_ms),
            Self::DisconnectedTime => row.disconnected_ms,
        };
        let instant = |time: &Timestamp| (time.seconds, time.nanos);
        ms.is_some_and(|ms| match test {
            Test::Present => true,
            Test::Time(comparator, is) => comparator.holds(&instant(&timestamp(ms)), &instant(is)),
            _ => false,
        })
    }
}

impl Test {
    fn of_text(&self, held: Option<&str>) -> bool {
        held.is_some_and(|held| match self {
            Self::Present => !held.is_empty(),
            Self::Text(comparator, is) => comparator.holds_text(held, is),
            _ => false,
        })
    }

    /// A label with an empty value is there.
    fn of_label(&self, held: Option<&String>) -> bool {
        match self {
            Self::Present => held.is_some(),
            test => test.of_text(held.map(String::as_str)),
        }
    }

    fn of_any<'a>(&self, mut held: impl Iterator<Item = &'a String>) -> bool {
        match self {
            Self::Present => held.next().is_some(),
            Self::Text(_, is) => held.any(|text| is.matches(text)),
            _ => false,
        }
    }
}

impl Comparator {
    fn holds<T: PartialOrd>(self, held: &T, is: &T) -> bool {
        match self {
            Self::Equal | Self::Has => held == is,
            Self::Unequal => held != is,
            Self::Less => held < is,
            Self::LessOrEqual => held <= is,
            Self::Greater => held > is,
            Self::GreaterOrEqual => held >= is,
        }
    }

    fn holds_text(self, held: &str, is: &Pattern) -> bool {
        match self {
            Self::Equal => is.matches(held),
            Self::Unequal => !is.matches(held),
            Self::Has => held.to_lowercase().contains(&is.text.to_lowercase()),
            _ => self.holds(&held, &is.text.as_str()),
        }
    }
}

impl Pattern {
    fn matches(&self, held: &str) -> bool {
        let text = self.text.as_str();
        match (self.any_before, self.any_after) {
            (false, false) => held == text,
            (true, false) => held.ends_with(text),
            (false, true) => held.starts_with(text),
            (true, true) => held.contains(text),
        }
    }

    /// The text, if it has no wildcard.
    fn whole(&self) -> Option<String> {
        (!self.any_before && !self.any_after).then(|| self.text.clone())
    }

    fn is_anything(&self) -> bool {
        self.text.is_empty() && (self.any_before || self.any_after)
    }
}

/// Recursive descent, by parentheses only, so its depth is bounded.
struct Parser<'a> {
    text: &'a str,
    /// Byte.
    at: usize,
    depth: usize,
    tests: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn problem(&self, text: impl Into<String>) -> Problem {
        self.problem_at(self.at, text)
    }

    fn problem_at(&self, byte: usize, text: impl Into<String>) -> Problem {
        Problem { at: self.text[..byte].chars().count() + 1, text: text.into() }
    }

    fn skip_space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let taken = &rest[..rest.find(|c| !wanted(c)).unwrap_or(rest.len())];
        self.at += taken.len();
        taken
    }

    fn take(&mut self, token: &str) -> bool {
        let is_there = self.rest().starts_with(token);
        if is_there {
            self.at += token.len();
        }
        is_there
    }

    /// Takes a word of the language, which stands alone.
    fn take_word(&mut self, word: &str) -> bool {
        let after = self.rest().strip_prefix(word);
        let stands_alone = |rest: &str| rest.starts_with(|c: char| c.is_whitespace() || c == '(');
        after.is_some_and(stands_alone) && self.take(word)
    }

    /// Terms joined by AND, or side by side.
    fn expression(&mut self) -> Result<Node, Problem> {
        let mut terms = vec![self.factor()?];
        loop {
            self.skip_space();
            if self.rest().is_empty() || self.rest().starts_with(')') {
                return Ok(if terms.len() == 1 { terms.remove(0) } else { Node::All(terms) });
            }
            if self.take_word("AND") {
                self.skip_space();
            }
            terms.push(self.factor()?);
        }
    }

    /// Terms joined by OR.
    fn factor(&mut self) -> Result<Node, Problem> {
        let mut terms = vec![self.term()?];
        loop {
            self.skip_space();
            if !self.take_word("OR") {
                return Ok(if terms.len() == 1 { terms.remove(0) } else { Node::Any(terms) });
            }
            self.skip_space();
            terms.push(self.term()?);
        }
    }

    fn term(&mut self) -> Result<Node, Problem> {
        let is_negated = self.take_word("NOT") || self.take("-");
        self.skip_space();
        let node = if self.take("(") { self.group()? } else { self.comparison()? };
        Ok(if is_negated { Node::Not(Box::new(node)) } else { node })
    }

    fn group(&mut self) -> Result<Node, Problem> {
        let opened = self.at - 1;
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(self.problem_at(opened, format!("more than {DEPTH_MAX} levels of parentheses")));
        }
        self.skip_space();
        let node = self.expression()?;
        if !self.take(")") {
            return Err(self.problem_at(opened, "this `(` is never closed"));
        }
        self.depth -= 1;
        Ok(node)
    }

    fn comparison(&mut self) -> Result<Node, Problem> {
        let began = self.at;
        let path = self.path()?;
        self.tests += 1;
        if self.tests > TESTS_MAX {
            return Err(self.problem_at(began, format!("more than {TESTS_MAX} comparisons")));
        }
        let after = self.at;
        self.skip_space();
        let Some(comparator) = self.comparator() else {
            return Err(self.not_compared(began, after));
        };
        let field = self.field(began, &path)?;
        self.skip_space();
        let valued = self.at;
        let value = self.value(comparator)?;
        let test = test(&field, comparator, value).map_err(|text| self.problem_at(valued, text))?;
        Ok(Node::Test { field, test })
    }

    /// Why something that is not followed by a comparison has no sense.
    fn not_compared(&self, began: usize, after: usize) -> Problem {
        let word = &self.text[began..after];
        let text = match word.to_ascii_uppercase().as_str() {
            "" => "a comparison is missing; such as type = \"HTTP\"".to_owned(),
            upper @ ("AND" | "OR" | "NOT") if word != upper => format!("write {upper} in capitals"),
            "AND" | "OR" | "NOT" => {
                format!("a comparison is missing; {word} stands between two of them or before one")
            }
            _ if self.text[after..].starts_with('(') => "functions are not known here".to_owned(),
            _ => format!(
                "{word} is not compared with anything; write {word}:* or {word} = value, or use text_search"
            ),
        };
        self.problem_at(began, text)
    }

    /// Names joined by dots.
    fn path(&mut self) -> Result<Vec<String>, Problem> {
        let mut path = Vec::new();
        loop {
            let is_key = !path.is_empty();
            if let Some(quote @ ('"' | '\'')) = self.rest().chars().next().filter(|_| is_key) {
                let (key, _) = self.quoted(quote)?;
                path.push(key.into_iter().map(|(c, _)| c).collect());
            } else {
                let is_letter =
                    |c: char| c.is_alphanumeric() || c == '_' || (is_key && matches!(c, '-' | '/' | '$'));
                let name = self.take_while(is_letter);
                if name.is_empty() && is_key {
                    return Err(self.problem("a name is missing after the dot"));
                }
                path.push(name.to_owned());
            }
            if !self.take(".") {
                return Ok(path);
            }
        }
    }

    fn field(&self, began: usize, path: &[String]) -> Result<Field, Problem> {
        let names: Vec<&str> = path.iter().map(String::as_str).collect();
        Ok(match names.as_slice() {
            ["display_name"] => Field::DisplayName,
            ["type"] => Field::Type,
            ["enabled"] => Field::Enabled,
            ["description"] => Field::Description,
            ["labels"] => Field::Labels,
            ["labels", key] => Field::Label((*key).to_owned()),
            ["labels", ..] => {
                let text =
                    format!("write labels.\"{}\" for a label with dots in its key", names[1..].join("."));
                return Err(self.problem_at(began, text));
            }
            ["revision"] => Field::Revision,
            ["create_time"] => Field::CreateTime,
            ["update_time"] => Field::UpdateTime,
            ["disconnected_time"] => Field::DisconnectedTime,
            ["topic_filters"] => Field::TopicFilters,
            ["status", "phase"] => Field::Phase,
            ["status", "reason"] => Field::Reason,
            [""] => return Err(self.problem_at(began, "a field is missing before the comparison")),
            other => {
                let text = format!("there is no field {} to filter by; known are {FIELDS}", other.join("."));
                return Err(self.problem_at(began, text));
            }
        })
    }

    fn comparator(&mut self) -> Option<Comparator> {
        let all = [
            ("<=", Comparator::LessOrEqual),
            (">=", Comparator::GreaterOrEqual),
            ("!=", Comparator::Unequal),
            ("<", Comparator::Less),
            (">", Comparator::Greater),
            ("=", Comparator::Equal),
            (":", Comparator::Has),
        ];
        all.into_iter().find(|(token, _)| self.take(token)).map(|(_, comparator)| comparator)
    }

    fn value(&mut self, comparator: Comparator) -> Result<Pattern, Problem> {
        let began = self.at;
        let letters: Vec<(char, bool)> = match self.rest().chars().next() {
            Some('(') => {
                let text = "a value can't be a list; write field = a OR field = b";
                return Err(self.problem(text));
            }
            Some('=' | '<' | '>' | '!' | ':') => {
                return Err(self.problem("one of = != < <= > >= : is enough, then a value"));
            }
            Some(quote @ ('"' | '\'')) => self.quoted(quote)?.0,
            _ => {
                let bare = |c: char| !c.is_whitespace() && !matches!(c, '(' | ')' | '"' | '\'' | ',');
                self.take_while(bare).chars().map(|c| (c, false)).collect()
            }
        };
        if letters.is_empty() && self.at == began {
            return Err(self.problem("a value is missing"));
        }
        if letters.iter().any(|(c, _)| *c == '\0') {
            return Err(self.problem_at(began, "a value can't have U+0000"));
        }
        // Greater and less know no wildcards.
        let knows = matches!(comparator, Comparator::Equal | Comparator::Unequal | Comparator::Has);
        let is_wild = |(c, is_escaped): &(char, bool)| knows && *c == '*' && !is_escaped;
        let any_before = letters.first().is_some_and(is_wild);
        let any_after = letters.last().is_some_and(is_wild);
        let inner = &letters[usize::from(any_before)..];
        let inner = &inner[..inner.len() - usize::from(any_after && !inner.is_empty())];
        if inner.iter().any(is_wild) {
            let text =
                "a * stands for anything only at the beginning or the end; write \"\\*\" for the character";
            return Err(self.problem_at(began, text));
        }
        Ok(Pattern { text: inner.iter().map(|(c, _)| c).collect(), any_before, any_after })
    }

    /// The characters between quotes, each with whether it was escaped.
    fn quoted(&mut self, quote: char) -> Result<(Vec<(char, bool)>, usize), Problem> {
        let began = self.at;
        let mut letters = Vec::new();
        let mut chars = self.rest().char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => match chars.next() {
                    Some((_, escaped)) => letters.push((escaped, true)),
                    None => break,
                },
                c if c == quote => {
                    self.at = began + at + 1;
                    return Ok((letters, began));
                }
                c => letters.push((c, false)),
            }
        }
        Err(self.problem_at(began, format!("this {quote} is never closed")))
    }
}

/// The test of a field, or what is wrong with the value.
fn test(field: &Field, comparator: Comparator, value: Pattern) -> Result<Test, String> {
    use Comparator::{Equal, Has, Unequal};
    if comparator == Has && value.is_anything() && !matches!(field, Field::Enabled | Field::Revision) {
        return Ok(Test::Present);
    }
    let only = |which: &str, example: &str| Err(format!("this field knows only {which}; such as {example}"));
    let plain =
        || if value.any_before || value.any_after { format!("{}*", value.text) } else { value.text.clone() };
    match field {
        Field::DisplayName | Field::Type | Field::Description | Field::Label(_) | Field::Reason => {
            Ok(Test::Text(comparator, value))
        }
        Field::Labels if comparator == Has => Ok(Test::Text(Has, value)),
        Field::Labels => only("the comparison :", "labels:site, or labels.site = \"x\" for a value"),
        Field::TopicFilters if comparator == Has => Ok(Test::Text(Has, value)),
        Field::TopicFilters => only("the comparison :", "topic_filters:\"a/#\""),
        Field::Enabled => match (comparator, plain().as_str()) {
            (Equal | Unequal, "true") => Ok(Test::Bool(comparator, true)),
            (Equal | Unequal, "false") => Ok(Test::Bool(comparator, false)),
            _ => only("= and != with true or false", "enabled = true"),
        },
        Field::Revision => match plain().parse() {
            Ok(number) if comparator != Has => Ok(Test::Number(comparator, number)),
            _ => only("= != < <= > >= with a whole number from 0", "revision > 17"),
        },
        Field::CreateTime | Field::UpdateTime | Field::DisconnectedTime => match plain().parse() {
            Ok(time) if comparator != Has => Ok(Test::Time(comparator, time)),
            _ => only("= != < <= > >= with a time of RFC 3339", "create_time > \"2026-01-31T12:00:00Z\""),
        },
        Field::Phase => {
            let name = plain().to_ascii_uppercase();
            let name = name.strip_prefix("PHASE_").unwrap_or(&name);
            let phase = Phase::from_str_name(&format!("PHASE_{name}"));
            match (comparator, phase) {
                (Equal | Unequal | Has, Some(phase)) => Ok(Test::Phase(comparator, phase)),
                _ => only("= and != with DISABLED, PENDING, ACTIVE or FAILED", "status.phase = ACTIVE"),
            }
        }
    }
}

#[cfg(test)]
mod tests;
