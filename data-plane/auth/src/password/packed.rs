//! Hashes in about half the memory that their texts take: an index holds a million of them.

use std::cell::RefCell;

use argon2::{
    Block, Params,
    password_hash::phc::{Output, PasswordHash},
};
use subtle::ConstantTimeEq as _;

use super::{Cost, Invalid, argon2, check, parse, verify_text};

/// Begins an argon2id hash as numbers and bytes; no text begins so.
const BYTES: u8 = 0;

thread_local! {
    /// What argon2id works in, of the largest hash that this thread has verified. The system's allocator does not take
    /// such a large, aligned piece where the last one was: each password would cost another 19 MiB for a while.
    static BLOCKS: RefCell<Vec<Block>> = const { RefCell::new(Vec::new()) };
}

/// A hash that [`pack`] has packed.
#[derive(Clone, Copy)]
pub(crate) struct Packed<'a>(&'a [u8]);

/// What a packed hash is.
enum Form<'a> {
    /// argon2id as numbers and bytes.
    Argon2id { cost: Cost, salt: &'a [u8], output: &'a [u8] },
    /// Anything else.
    Text(&'a str),
}

/// Packs a hash, to be read by [`Packed::of`]: argon2id's numbers and bytes; all else stays the text that it is.
///
/// # Errors
/// As [`check`].
pub(crate) fn pack(hash: &str) -> Result<Vec<u8>, Invalid> {
    let packed = match parse(hash)? {
        (_, Some((phc, params))) => bytes_of(&phc, &params),
        (_, None) => None,
    };
    Ok(packed.unwrap_or_else(|| hash.as_bytes().to_vec()))
}

/// `None`: it says more than there is room for.
fn bytes_of(phc: &PasswordHash, params: &Params) -> Option<Vec<u8>> {
    if !params.keyid().is_empty() || !params.data().is_empty() {
        return None;
    }
    bytes(params, phc.salt.as_ref()?, phc.hash?.as_bytes())
}

fn bytes(params: &Params, salt: &[u8], output: &[u8]) -> Option<Vec<u8>> {
    let [passes, lanes] = [params.t_cost(), params.p_cost()].map(|number| u8::try_from(number).ok());
    let head = [BYTES, passes?, lanes?, u8::try_from(salt.len()).ok()?];
    Some([&head, &params.m_cost().to_be_bytes()[..], salt, output].concat())
}

/// A hash of this cost, so that all steps of verifying it are the same, and of no password that is known.
pub(super) fn of_nobody(cost: Cost) -> Vec<u8> {
    match cost {
        Cost::Argon2id { .. } => {
            bytes(argon2(cost).params(), b"nobody's salt...", &[0; 32]).expect("a cost that was checked fits")
        }
        Cost::Bcrypt { log_rounds } => format!("$2a${log_rounds:02}${}", ".".repeat(53)).into_bytes(),
    }
}

impl<'a> Packed<'a> {
    /// Reads what [`pack`] has packed; `None`: there is no hash.
    pub(crate) fn of(bytes: &'a [u8]) -> Option<Self> {
        (!bytes.is_empty()).then_some(Self(bytes))
    }

    fn form(self) -> Form<'a> {
        let argon2id = || {
            let ([tag, passes, lanes, salt_len], rest) = self.0.split_first_chunk()?;
            let (memory_kib, rest) = rest.split_first_chunk()?;
            let (salt, output) = rest.split_at_checked((*salt_len).into())?;
            let memory_kib = u32::from_be_bytes(*memory_kib);
            let cost = Cost::Argon2id { memory_kib, passes: (*passes).into(), lanes: (*lanes).into() };
            (*tag == BYTES).then_some(Form::Argon2id { cost, salt, output })
        };
        argon2id().unwrap_or_else(|| Form::Text(str::from_utf8(self.0).expect("it was packed from a text")))
    }

    /// What it costs to verify a password with it; quick.
    pub(crate) fn cost(self) -> Option<Cost> {
        match self.form() {
            Form::Argon2id { cost, .. } => Some(cost),
            Form::Text(hash) => check(hash).ok(),
        }
    }

    /// As [`super::verify`].
    pub(crate) fn verify(self, password: &[u8]) -> bool {
        match self.form() {
            Form::Argon2id { cost, salt, output } => {
                let mut computed = [0; Output::MAX_LENGTH];
                let Some(computed) = computed.get_mut(..output.len()) else { return false };
                let argon2 = argon2(cost);
                let is_computed = BLOCKS.with_borrow_mut(|blocks| {
                    let count = argon2.params().block_count();
                    if blocks.len() < count {
                        *blocks = vec![Block::default(); count];
                    }
                    argon2
                        .hash_password_into_with_memory(password, salt, computed, &mut blocks[..count])
                        .is_ok()
                });
                is_computed && computed.ct_eq(output).into()
            }
            Form::Text(hash) => verify_text(password, hash),
        }
    }
}
