//! A regular expression of Java, in the dialect that is used here.
//!
//! What means the same stays as it is. What is written otherwise is rewritten: `\Q…\E`, and the classes that are ASCII
//! in Java (`\d`, `\w`, `\s`, `\p{Alpha}`…) and would hold more here. What would silently mean something else is
//! refused, so that no rule is wider than it was. Look-around and back-references are left to the server, which says
//! why it has none.

use std::{iter::Peekable, str::Chars};

/// Classes of `\p{…}` that are ASCII in Java, by their names here.
const POSIX: &[(&str, &str)] = &[
    ("Lower", "lower"),
    ("Upper", "upper"),
    ("ASCII", "ascii"),
    ("Alpha", "alpha"),
    ("Digit", "digit"),
    ("Alnum", "alnum"),
    ("Punct", "punct"),
    ("Graph", "graph"),
    ("Print", "print"),
    ("Blank", "blank"),
    ("Cntrl", "cntrl"),
    ("XDigit", "xdigit"),
    ("Space", "space"),
];

/// Characters that must be escaped to stand for themselves.
const META: &str = "\\.+*?()|[]{}^$#&-~";

/// Rewrites a pattern.
///
/// # Errors
/// What would mean something else.
pub(crate) fn translated(pattern: &str) -> Result<String, String> {
    let mut walk =
        Walk { rest: pattern.chars().peekable(), out: String::new(), classes: 0, in_braces: false };
    while let Some(c) = walk.rest.next() {
        walk.take(c)?;
    }
    Ok(walk.out)
}

struct Walk<'a> {
    rest: Peekable<Chars<'a>>,
    out: String,
    /// Classes within classes.
    classes: usize,
    /// Between `{` and `}` of a quantifier.
    in_braces: bool,
}

impl Walk<'_> {
    fn take(&mut self, c: char) -> Result<(), String> {
        match c {
            '\\' => return self.escape(),
            '[' => return self.class(),
            ']' if self.classes > 0 => self.classes -= 1,
            '-' | '~' if self.classes > 0 && self.rest.peek() == Some(&c) => {
                return Err(format!("{c}{c} within [] means something else here: escape it as \\{c}"));
            }
            _ if self.classes > 0 => {}
            '(' => return self.group(),
            '{' => self.in_braces = true,
            '}' if std::mem::take(&mut self.in_braces) => self.quantified()?,
            '*' | '+' | '?' => self.quantified()?,
            _ => {}
        }
        self.out.push(c);
        Ok(())
    }

    /// After a quantifier.
    fn quantified(&mut self) -> Result<(), String> {
        if self.rest.peek() == Some(&'+') {
            return Err("possessive quantifiers such as a*+ mean something else here: write a*".to_owned());
        }
        Ok(())
    }

    fn group(&mut self) -> Result<(), String> {
        self.out.push('(');
        if self.rest.next_if_eq(&'?').is_none() {
            return Ok(());
        }
        self.out.push('?');
        while let Some(flag) = self.rest.next_if(|c| c.is_ascii_alphabetic() || *c == '-') {
            if flag == 'U' {
                return Err("the flag U means something else here: leave it out".to_owned());
            }
            self.out.push(flag);
        }
        Ok(())
    }

    fn class(&mut self) -> Result<(), String> {
        if self.classes > 0 && self.rest.peek() == Some(&':') {
            return Err("[: within [] means something else here: escape it as \\[:".to_owned());
        }
        self.classes += 1;
        self.out.push('[');
        if self.rest.next_if_eq(&'^').is_some() {
            self.out.push('^');
        }
        if self.rest.next_if_eq(&']').is_some() {
            self.out.push_str("\\]");
        }
        Ok(())
    }

    fn escape(&mut self) -> Result<(), String> {
        let Some(c) = self.rest.next() else { return Err("it ends with a backslash".to_owned()) };
        match c {
            'Q' => self.quote(),
            // Of a quotation that was not begun, which Java refuses.
            'E' => return Err("\\E ends no \\Q".to_owned()),
            'd' => self.out.push_str("[0-9]"),
            'D' => self.out.push_str("[^0-9]"),
            'w' => self.out.push_str("[A-Za-z0-9_]"),
            'W' => self.out.push_str("[^A-Za-z0-9_]"),
            's' => self.out.push_str(r"[\x20\t\n\x0B\f\r]"),
            'S' => self.out.push_str(r"[^\x20\t\n\x0B\f\r]"),
            'p' | 'P' => self.property(c),
            // Punctuation stands for itself, and these two would be ends of words.
            '<' | '>' => self.out.push(c),
            c if !c.is_ascii() => self.out.push(c),
            c => self.out.extend(['\\', c]),
        }
        Ok(())
    }

    fn quote(&mut self) {
        while let Some(c) = self.rest.next() {
            if c == '\\' && self.rest.next_if_eq(&'E').is_some() {
                return;
            }
            if META.contains(c) {
                self.out.push('\\');
            }
            self.out.push(c);
        }
    }

    fn property(&mut self, letter: char) {
        let mut name = String::new();
        if self.rest.next_if_eq(&'{').is_some() {
            while let Some(c) = self.rest.next_if(|c| *c != '}') {
                name.push(c);
            }
            self.rest.next();
            if let Some((_, ours)) = POSIX.iter().find(|(java, _)| *java == name) {
                let not = if letter == 'P' { "^" } else { "" };
                self.out.extend(["[[:", not, ours, ":]]"]);
                return;
            }
            self.out.extend(['\\', letter, '{']);
            self.out.extend([name.as_str(), "}"]);
        } else {
            self.out.extend(['\\', letter]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_the_same_stays_as_it_is() {
        for pattern in [
            ".*",
            "sensors/[^/]+/(temp|hum)",
            "a{2,3}?b*?c+?",
            "(?i)a(?:b)(?<n>c)",
            "\\$SYS/\\.\\+\\/x",
            "[a-z&&[^b]]",
            "${cn}/.*",
            "\\p{L}\\pL[\\\\-]",
            "\\++a",
            "x}+",
        ] {
            assert_eq!(translated(pattern).as_deref(), Ok(pattern));
        }
    }

    #[test]
    fn what_is_written_otherwise_is_rewritten() {
        for (java, ours) in [
            ("\\Qa.b/${x}\\E/.*", "a\\.b/\\$\\{x\\}/.*"),
            ("\\Qa\\b", "a\\\\b"),
            ("d\\d+[\\w.]\\S", "d[0-9]+[[A-Za-z0-9_].][^\\x20\\t\\n\\x0B\\f\\r]"),
            ("\\p{Alpha}\\P{Digit}", "[[:alpha:]][[:^digit:]]"),
            ("\\<a\\>\\é", "<a>é"),
            ("[]a][^]b]", "[\\]a][^\\]b]"),
        ] {
            assert_eq!(translated(java).as_deref(), Ok(ours), "{java}");
        }
    }

    #[test]
    fn what_would_mean_something_else_is_refused() {
        for (java, reason) in [
            ("a*+b", "possessive"),
            ("a++", "possessive"),
            ("a?+", "possessive"),
            ("a{1,2}+", "possessive"),
            ("[a--b]", "--"),
            ("[a[:b]]", "[:"),
            ("(?U)\\w", "flag U"),
            ("a\\", "backslash"),
        ] {
            let error = translated(java).unwrap_err();
            assert!(error.contains(reason), "{java}: {error}");
        }
    }
}
