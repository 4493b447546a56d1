//! SCRAM-SHA-256 and SCRAM-SHA-512 (RFC 5802, RFC 7677), the server's side, as MQTT 5.0 enhanced authentication carries
//! it:
//!
//! ```text
//! CONNECT / AUTH  client-first ──► ClientFirst::parse ──► Exchange::start ──► server-first  AUTH 0x18
//! AUTH            client-final ──► Exchange::finish ──► server-final  CONNACK / AUTH 0x00, or a refusal
//! ```
//!
//! Only keys are stored, from which the password can't be read. A user that does not exist gets a salt that is always
//! the same for the name, and fails with the proof as a bad password does.

use std::{borrow::Cow, num::NonZeroU32};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use ring::{digest, hmac, pbkdf2};
use subtle::ConstantTimeEq as _;

#[cfg(test)]
mod tests;

/// TBMQ's iterations, and the fewest that RFC 7677 allows.
pub const ITERATIONS: u32 = 4096;

/// The most iterations: clients do them.
pub const ITERATIONS_MAX: u32 = 1_000_000;

/// Bytes of a client's message.
pub const MESSAGE_BYTES_MAX: usize = 8 << 10;

/// Bytes of a client's nonce.
pub const NONCE_BYTES_MAX: usize = 512;

const SALT_BYTES: std::ops::RangeInclusive<usize> = 8..=64;

/// A mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// `SCRAM-SHA-256`
    Sha256,
    /// `SCRAM-SHA-512`
    Sha512,
}

impl Algorithm {
    /// By its name in Authentication Method.
    pub fn of_method(method: &str) -> Option<Self> {
        [Self::Sha256, Self::Sha512].into_iter().find(|algorithm| algorithm.method() == method)
    }

    /// Its name in Authentication Method.
    pub fn method(self) -> &'static str {
        match self {
            Self::Sha256 => "SCRAM-SHA-256",
            Self::Sha512 => "SCRAM-SHA-512",
        }
    }

    fn digest(self) -> &'static digest::Algorithm {
        match self {
            Self::Sha256 => &digest::SHA256,
            Self::Sha512 => &digest::SHA512,
        }
    }

    fn hmac(self, key: &[u8], data: &[u8]) -> hmac::Tag {
        let algorithm = match self {
            Self::Sha256 => hmac::HMAC_SHA256,
            Self::Sha512 => hmac::HMAC_SHA512,
        };
        hmac::sign(&hmac::Key::new(algorithm, key), data)
    }

    fn len(self) -> usize {
        self.digest().output_len()
    }
}

/// What is stored of a password.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredKeys {
    /// The mechanism that they are for.
    pub algorithm: Algorithm,
    /// Of PBKDF2.
    pub iterations: u32,
    /// Random.
    pub salt: Vec<u8>,
    /// `StoredKey`
    pub stored: Vec<u8>,
    /// `ServerKey`
    pub server: Vec<u8>,
}

/// Why keys can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKeys {
    /// Too few are easy to guess, too many keep clients busy.
    #[error("SCRAM takes {ITERATIONS} to {ITERATIONS_MAX} iterations, not {0}")]
    Iterations(u32),
    /// Bytes of the salt.
    #[error("a salt of SCRAM has 8 to 64 bytes, not {0}")]
    Salt(usize),
    /// Not as long as the digest.
    #[error("the keys of {method} have {expected} bytes each")]
    Length {
        /// The mechanism.
        method: &'static str,
        /// Bytes of a key.
        expected: usize,
    },
    /// SASLprep refuses it.
    #[error("the password has characters that SASLprep prohibits, or none")]
    Password,
}

impl std::fmt::Debug for StoredKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoredKeys").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

impl StoredKeys {
    /// Of a password that is set; the salt is random. Takes milliseconds.
    ///
    /// # Errors
    /// When the password or a number can't be used.
    pub fn derive(
        algorithm: Algorithm,
        password: &str,
        salt: &[u8],
        iterations: u32,
    ) -> Result<Self, InvalidKeys> {
        let password = prepare(password).ok_or(InvalidKeys::Password)?;
        let mut keys = Self {
            algorithm,
            iterations,
            salt: salt.to_vec(),
            stored: vec![0; algorithm.len()],
            server: vec![0; algorithm.len()],
        };
        keys.check()?;
        let pbkdf2 = match algorithm {
            Algorithm::Sha256 => pbkdf2::PBKDF2_HMAC_SHA256,
            Algorithm::Sha512 => pbkdf2::PBKDF2_HMAC_SHA512,
        };
        let mut salted = vec![0; algorithm.len()];
        let rounds = NonZeroU32::new(iterations).expect("they were checked");
        pbkdf2::derive(pbkdf2, rounds, salt, password.as_bytes(), &mut salted);
        let client = algorithm.hmac(&salted, b"Client Key");
        keys.stored = digest::digest(algorithm.digest(), client.as_ref()).as_ref().to_vec();
        keys.server = algorithm.hmac(&salted, b"Server Key").as_ref().to_vec();
        Ok(keys)
    }

    /// Whether they can be used.
    ///
    /// # Errors
    /// See [`InvalidKeys`].
    pub fn check(&self) -> Result<(), InvalidKeys> {
        if !(ITERATIONS..=ITERATIONS_MAX).contains(&self.iterations) {
            return Err(InvalidKeys::Iterations(self.iterations));
        }
        if !SALT_BYTES.contains(&self.salt.len()) {
            return Err(InvalidKeys::Salt(self.salt.len()));
        }
        let expected = self.algorithm.len();
        if self.stored.len() != expected || self.server.len() != expected {
            return Err(InvalidKeys::Length { method: self.algorithm.method(), expected });
        }
        Ok(())
    }

    /// As bytes, for the index.
    pub(crate) fn pack(&self) -> Vec<u8> {
        let mut packed = vec![u8::from(self.algorithm == Algorithm::Sha512)];
        packed.extend(self.iterations.to_be_bytes());
        packed.extend([&self.stored[..], &self.server, &self.salt].concat());
        packed
    }

    /// The reverse.
    pub(crate) fn unpack(packed: &[u8]) -> Option<Self> {
        let (algorithm, rest) = packed.split_first()?;
        let algorithm = if *algorithm == 0 { Algorithm::Sha256 } else { Algorithm::Sha512 };
        let (iterations, rest) = rest.split_first_chunk::<4>()?;
        let (stored, rest) = rest.split_at_checked(algorithm.len())?;
        let (server, salt) = rest.split_at_checked(algorithm.len())?;
        let iterations = u32::from_be_bytes(*iterations);
        Some(Self {
            algorithm,
            iterations,
            salt: salt.to_vec(),
            stored: stored.to_vec(),
            server: server.to_vec(),
        })
    }
}

/// A user name or password by SASLprep (RFC 4013); `None`: it has prohibited characters, or nothing is left.
pub fn prepare(text: &str) -> Option<Cow<'_, str>> {
    stringprep::saslprep(text).ok().filter(|text| !text.is_empty())
}

/// Why a client is refused; nothing of it is told to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A message that is not of SCRAM.
    #[error("the message is not of SCRAM: {0}")]
    Malformed(&'static str),
    /// It wants something that is not served.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    /// The user is unknown, has keys of another mechanism, or the password is wrong.
    #[error("the proof is wrong")]
    Proof,
}

/// A good client-first message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFirst {
    gs2_header: Box<str>,
    bare: Box<str>,
    user_name: Box<str>,
    nonce: Box<str>,
}

impl ClientFirst {
    /// Reads it.
    ///
    /// # Errors
    /// When it is none, or wants channel binding, or to act as another user.
    pub fn parse(message: &[u8]) -> Result<Self, Refused> {
        let message = text(message)?;
        let mut parts = message.splitn(3, ',');
        let (Some(binding), Some(acts_as), Some(bare)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(Refused::Malformed("it has no GS2 header"));
        };
        match binding {
            "n" | "y" => {}
            _ if binding.starts_with("p=") => return Err(Refused::Unsupported("channel binding")),
            _ => return Err(Refused::Malformed("its channel binding flag is none of n, y and p=")),
        }
        let gs2_header = &message[..message.len() - bare.len()];
        let mut attributes = bare.split(',');
        let first = attributes.next().unwrap_or_default();
        if first.starts_with("m=") {
            return Err(Refused::Unsupported("a mandatory extension"));
        }
        let name = first.strip_prefix("n=").ok_or(Refused::Malformed("it has no user name"))?;
        let user_name = user_name(name)?;
        if !acts_as.is_empty() {
            let other = acts_as.strip_prefix("a=").ok_or(Refused::Malformed("its GS2 header is none"))?;
            if self::user_name(other)? != user_name {
                return Err(Refused::Unsupported("to act as another user"));
            }
        }
        let nonce = attributes.next().and_then(|attribute| attribute.strip_prefix("r="));
        let nonce =
            nonce.filter(|nonce| is_nonce(nonce)).ok_or(Refused::Malformed("it has no good nonce"))?;
        Ok(Self { gs2_header: gs2_header.into(), bare: bare.into(), user_name, nonce: nonce.into() })
    }

    /// The user name by SASLprep.
    pub fn user_name(&self) -> &str {
        &self.user_name
    }
}

fn text(message: &[u8]) -> Result<&str, Refused> {
    if message.len() > MESSAGE_BYTES_MAX {
        return Err(Refused::Malformed("it is too long"));
    }
    str::from_utf8(message).map_err(|_| Refused::Malformed("it is not UTF-8"))
}

/// RFC 5802 §7: `value`'s printable ASCII without a comma.
fn is_nonce(text: &str) -> bool {
    (1..=NONCE_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',')
}

/// RFC 5802 §5.1: `,` is `=2C`, `=` is `=3D`, and no other `=` may be there.
fn user_name(escaped: &str) -> Result<Box<str>, Refused> {
    let mut name = String::with_capacity(escaped.len());
    let mut parts = escaped.split('=');
    name.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let (character, rest) = match part.split_at_checked(2) {
            Some(("2C", rest)) => (',', rest),
            Some(("3D", rest)) => ('=', rest),
            _ => return Err(Refused::Malformed("its user name holds a bare =")),
        };
        name.push(character);
        name.push_str(rest);
    }
    prepare(&name).map(Into::into).ok_or(Refused::Malformed("SASLprep refuses its user name"))
}

/// What users that don't exist are answered with.
pub struct Nobody {
    key: hmac::Key,
    iterations: u32,
}

impl std::fmt::Debug for Nobody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nobody").finish_non_exhaustive()
    }
}

impl Nobody {
    /// The key is random and secret, and the same on every node and after every restart: a salt that changes tells
    /// that the user does not exist. The iterations are those of most users.
    pub fn new(key: [u8; 32], iterations: u32) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA512, &key), iterations }
    }

    fn keys(&self, algorithm: Algorithm, user_name: &str) -> StoredKeys {
        let derive = |what: &str, len: usize| {
            let mut context = hmac::Context::with_key(&self.key);
            for part in [what, "\0", algorithm.method(), "\0", user_name] {
                context.update(part.as_bytes());
            }
            context.sign().as_ref()[..len].to_vec()
        };
        StoredKeys {
            algorithm,
            iterations: self.iterations,
            salt: derive("salt", 16),
            stored: derive("stored", algorithm.len()),
            server: derive("server", algorithm.len()),
        }
    }
}

/// The server's part of the nonce, of random bytes.
pub fn nonce(random: [u8; 18]) -> String {
    BASE64_STANDARD.encode(random)
}

/// Between server-first and client-final.
#[derive(Debug)]
pub struct Exchange {
    keys: StoredKeys,
    is_known: bool,
    gs2_header: Box<str>,
    nonce: String,
    /// client-first-message-bare, server-first-message, and a comma after each.
    transcript: String,
}

impl Exchange {
    /// Answers client-first with server-first. `keys` are those of the user, or of none; keys of another mechanism are
    /// as good as none.
    pub fn start(
        algorithm: Algorithm,
        first: &ClientFirst,
        keys: Option<StoredKeys>,
        nobody: &Nobody,
        server_nonce: &str,
    ) -> (Self, String) {
        // Always derived, so that it takes the same time.
        let of_nobody = nobody.keys(algorithm, &first.user_name);
        let keys = keys.filter(|keys| keys.algorithm == algorithm);
        let is_known = keys.is_some();
        let keys = keys.unwrap_or(of_nobody);
        let nonce = format!("{}{server_nonce}", first.nonce);
        let server_first =
            format!("r={nonce},s={},i={}", BASE64_STANDARD.encode(&keys.salt), keys.iterations);
        let transcript = format!("{},{server_first},", first.bare);
        (Self { keys, is_known, gs2_header: first.gs2_header.clone(), nonce, transcript }, server_first)
    }

    /// Answers client-final with server-final, which proves the server to the client.
    ///
    /// # Errors
    /// When the message is none of this exchange, or its proof is wrong.
    pub fn finish(self, message: &[u8]) -> Result<String, Refused> {
        let message = text(message)?;
        let (without_proof, proof) =
            message.rsplit_once(",p=").ok_or(Refused::Malformed("it has no proof"))?;
        let mut attributes = without_proof.split(',');
        let binding = attributes.next().and_then(|attribute| attribute.strip_prefix("c="));
        let binding = binding.ok_or(Refused::Malformed("it has no channel binding"))?;
        // What the client has said first, so that nobody in between has changed it.
        if BASE64_STANDARD.decode(binding).ok().as_deref() != Some(self.gs2_header.as_bytes()) {
            return Err(Refused::Malformed("its channel binding is not that of client-first"));
        }
        if attributes.next().and_then(|attribute| attribute.strip_prefix("r=")) != Some(&*self.nonce) {
            return Err(Refused::Malformed("its nonce is not that of the exchange"));
        }
        let algorithm = self.keys.algorithm;
        let proof =
            BASE64_STANDARD.decode(proof).map_err(|_| Refused::Malformed("its proof is not base64"))?;
        if proof.len() != algorithm.len() {
            return Err(Refused::Malformed("its proof is not as long as the digest"));
        }
        let transcript = self.transcript + without_proof;
        let signature = algorithm.hmac(&self.keys.stored, transcript.as_bytes());
        let client: Vec<u8> = proof.iter().zip(signature.as_ref()).map(|(one, other)| one ^ other).collect();
        let stored = digest::digest(algorithm.digest(), &client);
        let is_right: bool = stored.as_ref().ct_eq(&self.keys.stored).into();
        if is_right && self.is_known {
            let signature = algorithm.hmac(&self.keys.server, transcript.as_bytes());
            Ok(format!("v={}", BASE64_STANDARD.encode(signature)))
        } else {
            Err(Refused::Proof)
        }
    }
}
