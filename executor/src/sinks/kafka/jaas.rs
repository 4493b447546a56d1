//! `sasl.jaas.config`: one login module with its options, in the syntax of Java's clients.
//!
//! ```text
//! org.apache.kafka.common.security.plain.PlainLoginModule required username="u" password="p";
//! ```
//!
//! Quoting is that of Java's `StreamTokenizer`: text in `"` or `'` with backslash escapes; `//` and `/* */` are comments.
//! No error shows a value: it may be a password.

use std::{fmt, iter::Peekable, str::Chars};

use crate::sinks::credentials::Secret;

/// A login module that librdkafka has a counterpart for, and who logs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Login {
    pub module: Module,
    pub username: String,
    pub password: Secret,
}

/// Login modules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Module {
    Plain,
    Scram,
}

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "PlainLoginModule",
            Self::Scram => "ScramLoginModule",
        })
    }
}

impl Module {
    fn of(class: &str) -> Option<Self> {
        match class.rsplit('.').next()? {
            "PlainLoginModule" => Some(Self::Plain),
            "ScramLoginModule" => Some(Self::Scram),
            _ => None,
        }
    }
}

/// Reads the text of `sasl.jaas.config`.
///
/// # Errors
/// What is wrong, without any value.
pub(super) fn parse(text: &str) -> Result<Login, String> {
    let mut tokens = Tokens { rest: text.chars().peekable() };
    let Some(Token::Text(class)) = tokens.next()? else {
        return Err("Login module not specified in JAAS config".to_owned());
    };
    let module = Module::of(&class).ok_or_else(|| {
        // A class name holds no secret; anything else might.
        let is_class = class.chars().all(|c| c.is_ascii_alphanumeric() || ".$_".contains(c));
        let class = if is_class && class.contains('.') { class.as_str() } else { "the login module" };
        format!("{class} is not supported; PlainLoginModule and ScramLoginModule are")
    })?;
    match tokens.next()? {
        Some(Token::Text(flag))
            if ["required", "requisite", "sufficient", "optional"]
                .iter()
                .any(|known| known.eq_ignore_ascii_case(&flag)) => {}
        None => return Err("Login module control flag not specified in JAAS config".to_owned()),
        Some(_) => return Err("Invalid login module control flag in JAAS config; it is: required".to_owned()),
    }
    let (mut username, mut password) = (None, None);
    loop {
        let key = match tokens.next()? {
            Some(Token::Symbol(';')) => break,
            Some(Token::Text(key)) => key,
            Some(Token::Symbol(_)) => return Err("Unexpected character in JAAS config".to_owned()),
            None => return Err("JAAS config entry not terminated by semi-colon".to_owned()),
        };
        let (Some(Token::Symbol('=')), Some(Token::Text(value))) = (tokens.next()?, tokens.next()?) else {
            let key =
                if ["username", "password"].contains(&key.as_str()) { key.as_str() } else { "an option" };
            return Err(format!("Value not specified for {key} in JAAS config"));
        };
        match key.as_str() {
            "username" => username = Some(value),
            "password" => password = Some(Secret::new(value)),
            // Others are for Java's module alone, such as `tokenauth` or `serviceName`.
            _ => {}
        }
    }
    if tokens.next()?.is_some() {
        return Err("JAAS config property contains several login modules, should be 1 module".to_owned());
    }
    let missing = |option: &str| format!("{option} is not specified in JAAS config");
    Ok(Login {
        module,
        username: username.ok_or_else(|| missing("username"))?,
        password: password.ok_or_else(|| missing("password"))?,
    })
}

enum Token {
    /// A word, or quoted text without its quotes.
    Text(String),
    Symbol(char),
}

struct Tokens<'a> {
    rest: Peekable<Chars<'a>>,
}

impl Tokens<'_> {
    fn next(&mut self) -> Result<Option<Token>, String> {
        loop {
            match self.rest.peek().copied() {
                None => return Ok(None),
                Some(c) if c <= ' ' => {
                    self.rest.next();
                }
                Some('/') => self.comment()?,
                Some(quote @ ('"' | '\'')) => return self.quoted(quote).map(Token::Text).map(Some),
                Some(c) if is_word(c) => {
                    let mut word = String::new();
                    while let Some(c) = self.rest.next_if(|c| is_word(*c)) {
                        word.push(c);
                    }
                    return Ok(Some(Token::Text(word)));
                }
                Some(c) => {
                    self.rest.next();
                    return Ok(Some(Token::Symbol(c)));
                }
            }
        }
    }

    fn comment(&mut self) -> Result<(), String> {
        self.rest.next();
        match self.rest.next() {
            Some('*') => {
                let mut last = ' ';
                for c in self.rest.by_ref() {
                    if last == '*' && c == '/' {
                        return Ok(());
                    }
                    last = c;
                }
                Err("a comment does not end in JAAS config".to_owned())
            }
            // `//`; and a single `/` begins a comment too.
            _ => {
                while self.rest.next_if(|c| *c != '\n').is_some() {}
                Ok(())
            }
        }
    }

    fn quoted(&mut self, quote: char) -> Result<String, String> {
        self.rest.next();
        let mut text = String::new();
        loop {
            match self.rest.next() {
                Some(c) if c == quote => return Ok(text),
                None | Some('\n' | '\r') => {
                    return Err("a quoted value does not end in JAAS config".to_owned());
                }
                Some('\\') => match self.rest.next() {
                    Some('n') => text.push('\n'),
                    Some('t') => text.push('\t'),
                    Some('r') => text.push('\r'),
                    Some('b') => text.push('\u{8}'),
                    Some('f') => text.push('\u{c}'),
                    Some('v') => text.push('\u{b}'),
                    Some('a') => text.push('\u{7}'),
                    Some(digit @ '0'..='7') => text.push(self.octal(digit)),
                    Some(other) => text.push(other),
                    None => return Err("a quoted value does not end in JAAS config".to_owned()),
                },
                Some(c) => text.push(c),
            }
        }
    }

    /// The rest of `\ddd`: up to three digits, the third only after a first of at most 3.
    fn octal(&mut self, first: char) -> char {
        let digit = |c: char| c.to_digit(8).unwrap_or_default();
        let mut code = digit(first);
        let most = if first <= '3' { 2 } else { 1 };
        for _ in 0..most {
            match self.rest.next_if(|c| ('0'..='7').contains(c)) {
                Some(c) => code = code * 8 + digit(c),
                None => break,
            }
        }
        char::from_u32(code).unwrap_or_default()
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || "_-$.".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(text: &str) -> (Module, String, String) {
        let login = parse(text).unwrap();
        (login.module, login.username, login.password.expose().to_owned())
    }

    #[test]
    fn the_seeds_text_is_read() {
        let text = r#"org.apache.kafka.common.security.plain.PlainLoginModule required username="CLUSTER_API_KEY" password="CLUSTER_API_SECRET";"#;
        assert_eq!(accepted(text), (Module::Plain, "CLUSTER_API_KEY".into(), "CLUSTER_API_SECRET".into()));
    }

    #[test]
    fn quoting_is_javas() {
        for (text, username, password) in [
            (r#"username="a b;=" password="say \"hi\" \\ \101\t""#, "a b;=", "say \"hi\" \\ A\t"),
            ("username='it''s' password='\"'", "", ""),
            ("username=plain-word_$1.x password='\"'", "plain-word_$1.x", "\""),
            (
                "\n  username = \"u\"\n  password\t=\"/* no comment */ // nor this\"",
                "u",
                "/* no comment */ // nor this",
            ),
            ("/* who */ username=u // end\n password=p", "u", "p"),
            (r#"tokenauth="true" username="ü" password="\z\477""#, "ü", "z\u{27}7"),
        ] {
            let text = format!("org.apache.kafka.common.security.scram.ScramLoginModule REQUIRED {text};");
            if username.is_empty() {
                assert!(parse(&text).is_err(), "{text}");
            } else {
                assert_eq!(accepted(&text), (Module::Scram, username.into(), password.into()), "{text}");
            }
        }
    }

    #[test]
    fn what_is_wrong_is_told_without_a_value() {
        let plain = "org.apache.kafka.common.security.plain.PlainLoginModule";
        for (text, error) in [
            (String::new(), "Login module not specified in JAAS config"),
            (plain.to_owned(), "Login module control flag not specified in JAAS config"),
            (
                format!("{plain} username=\"hunter2\";"),
                "Invalid login module control flag in JAAS config; it is: required",
            ),
            (
                format!("{plain} required username=u password=\"hunter2\""),
                "JAAS config entry not terminated by semi-colon",
            ),
            (format!("{plain} required username=u;"), "password is not specified in JAAS config"),
            (
                format!("{plain} required username=u password=;"),
                "Value not specified for password in JAAS config",
            ),
            (format!("{plain} required hunter2;"), "Value not specified for an option in JAAS config"),
            (format!("{plain} required password=\"hunter2;"), "a quoted value does not end in JAAS config"),
            (
                format!("{plain} required username=u password=hunter2; {plain} required;"),
                "JAAS config property contains several login modules, should be 1 module",
            ),
            (
                "com.sun.security.auth.module.Krb5LoginModule required;".to_owned(),
                "com.sun.security.auth.module.Krb5LoginModule is not supported; PlainLoginModule and ScramLoginModule are",
            ),
            (
                "hunter2 required;".to_owned(),
                "the login module is not supported; PlainLoginModule and ScramLoginModule are",
            ),
        ] {
            assert_eq!(parse(&text).unwrap_err(), error, "{text}");
            assert!(!error.contains("hunter2"));
        }
        assert!(
            !format!("{:?}", parse(&format!("{plain} required username=u password=hunter2;")))
                .contains("hunter2")
        );
    }
}
