//! Regular expressions that administrators write: linear in time, bounded in size, matched as a whole as TBMQ does.

use regex::{Regex, RegexBuilder};
use regex_syntax::{
    ParserBuilder,
    hir::{Hir, Look, literal::Extractor},
};

/// Bytes of a pattern.
pub const PATTERN_BYTES_MAX: usize = 4096;

/// Bytes of a compiled pattern, and of the automaton that is built while it matches. `\w{20}` takes about 200 KiB.
const COMPILED_BYTES_MAX: usize = 256 << 10;

/// Groups within groups.
const NESTING_MAX: u32 = 50;

/// Why a text can't be used as a pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// More than [`PATTERN_BYTES_MAX`].
    #[error("a pattern has at most {PATTERN_BYTES_MAX} bytes, this one has {0}")]
    TooLong(usize),
    /// No regular expression, or one that needs look-around or back-references.
    #[error("{pattern:?} is no regular expression of linear time: {reason}")]
    Syntax {
        /// The pattern.
        pattern: String,
        /// What is wrong.
        reason: String,
    },
    /// Small as text, large as a machine.
    #[error("{0:?} is too large when compiled")]
    TooLarge(String),
}

/// A pattern that matches whole texts (Java's `matches`).
#[derive(Clone, Debug)]
pub struct Pattern {
    machine: Machine,
    /// Every text that matches begins with one of these; `None`: nothing is known.
    prefixes: Option<Box<[Box<[u8]>]>>,
}

#[derive(Clone, Debug)]
enum Machine {
    /// `.*`, which most rules of TBMQ are.
    OneLine,
    Regex(Regex),
}

impl Pattern {
    /// Compiles a pattern; takes up to a few milliseconds for the largest.
    ///
    /// # Errors
    /// See [`Invalid`].
    pub fn whole(text: &str) -> Result<Self, Invalid> {
        if text == ".*" {
            return Ok(Self { machine: Machine::OneLine, prefixes: None });
        }
        let hir = parse(text)?;
        let prefixes = Extractor::new()
            .extract(&hir)
            .literals()
            .map(|literals| literals.iter().map(|literal| literal.as_bytes().into()).collect());
        // Anchors around the parsed expression: around its text, `a|b` or a comment would get past them.
        let whole = Hir::concat(vec![Hir::look(Look::Start), hir, Hir::look(Look::End)]);
        let regex = compile(&whole.to_string(), text)?;
        Ok(Self { machine: Machine::Regex(regex), prefixes })
    }

    /// Whether the whole text matches.
    pub fn is_match(&self, text: &str) -> bool {
        match &self.machine {
            Machine::OneLine => !text.contains('\n'),
            Machine::Regex(regex) => regex.is_match(text),
        }
    }

    /// Whether a text that begins with `prefix` may match. Never `false` when one does.
    pub fn may_match_below(&self, prefix: &str) -> bool {
        let prefix = prefix.as_bytes();
        self.prefixes.as_deref().is_none_or(|known| {
            known.iter().any(|known| known.starts_with(prefix) || prefix.starts_with(known))
        })
    }
}

/// A pattern that is looked for anywhere in a text (Java's `find`).
///
/// # Errors
/// See [`Invalid`].
pub fn anywhere(text: &str) -> Result<Regex, Invalid> {
    parse(text)?;
    compile(text, text)
}

fn parse(text: &str) -> Result<Hir, Invalid> {
    if text.len() > PATTERN_BYTES_MAX {
        return Err(Invalid::TooLong(text.len()));
    }
    let mut parser = ParserBuilder::new().nest_limit(NESTING_MAX).build();
    parser.parse(text).map_err(|error| {
        let reason = match error {
            regex_syntax::Error::Parse(error) => error.kind().to_string(),
            regex_syntax::Error::Translate(error) => error.kind().to_string(),
            error => error.to_string(),
        };
        Invalid::Syntax { pattern: text.to_owned(), reason }
    })
}

fn compile(regex: &str, text: &str) -> Result<Regex, Invalid> {
    RegexBuilder::new(regex)
        .size_limit(COMPILED_BYTES_MAX)
        .dfa_size_limit(COMPILED_BYTES_MAX)
        .build()
        .map_err(|_| Invalid::TooLarge(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        Pattern::whole(pattern).unwrap().is_match(text)
    }

    #[test]
    fn a_pattern_matches_whole_texts_whatever_it_is_made_of() {
        assert!(matches("a|ab", "ab"));
        assert!(!matches("a|b", "ab"));
        assert!(!matches("a", "a\n"));
        assert!(!matches("(?m)a$", "a\nb"));
        assert!(!matches("sensors/.*", "x/sensors/1"));
        assert!(matches("(?i)Sensors/\\d+", "sEnsors/17"));
        assert!(matches("(?x) a b # a comment", "ab"));
        assert!(!matches("(?x) a b # a comment", "abc"));
        assert!(matches(".*", "") && matches(".*", "a/b") && !matches(".*", "a\nb"));
        assert!(matches("", "") && !matches("", "a"));
    }

    #[test]
    fn a_pattern_that_would_break_out_of_its_anchors_is_refused() {
        assert!(matches!(Pattern::whole("a)|(b"), Err(Invalid::Syntax { .. })));
    }

    #[test]
    fn what_needs_backtracking_is_refused_with_the_reason() {
        for pattern in ["(a)\\1", "a(?=b)", "(?<!a)b", "a++"] {
            // Java's possessive `a++` is a repetition of a repetition here, which is the same language.
            let result = Pattern::whole(pattern);
            assert_eq!(result.is_ok(), pattern == "a++", "{pattern}: {result:?}");
        }
        let error = Pattern::whole("a(?=b)").unwrap_err().to_string();
        assert!(error.contains("look-around"), "{error}");
    }

    #[test]
    fn regex_bombs_are_refused() {
        for bomb in ["(a{1000}){1000}", "\\w{1000}", "((((a{100}){100}){100}){100})"] {
            assert!(matches!(Pattern::whole(bomb), Err(Invalid::TooLarge(_))), "{bomb}");
        }
        assert!(matches!(Pattern::whole(&"(".repeat(2000)), Err(Invalid::Syntax { .. })));
        let nested = format!("{}a{}", "(".repeat(100), ")".repeat(100));
        assert!(matches!(Pattern::whole(&nested), Err(Invalid::Syntax { .. })));
        assert_eq!(Pattern::whole(&"a".repeat(5000)).unwrap_err(), Invalid::TooLong(5000));
    }

    #[test]
    fn what_makes_others_exponential_is_linear() {
        let pattern = Pattern::whole("(a|a)*(a|a)*(a|a)*b").unwrap();
        assert!(!pattern.is_match(&"a".repeat(60_000)));
    }

    #[test]
    fn prefixes_tell_where_nothing_can_match() {
        let pattern = Pattern::whole("(secret|hidden)/.*").unwrap();
        assert!(pattern.may_match_below("secret/a"));
        assert!(pattern.may_match_below("hid"));
        assert!(pattern.may_match_below(""));
        assert!(!pattern.may_match_below("public/"));
        assert!(Pattern::whole(".*/secret").unwrap().may_match_below("public/"));
        assert!(Pattern::whole(".*").unwrap().may_match_below("public/"));
        assert!(Pattern::whole("(?i)secret/.*").unwrap().may_match_below("SeCrEt/"));
    }
}
