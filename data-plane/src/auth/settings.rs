//! Which providers are enabled, in which order they are asked, and how each is set up.
//!
//! A provider whose settings can't be used stays enabled and lets nobody in: without it, nobody would be asked for
//! anything. If they are only sealed with a key that is missing here, those from before go on to count, if it was
//! enabled with them.

use std::{collections::BTreeMap, sync::Arc};

use ring::rand::{SecureRandom as _, SystemRandom};
use serde::Deserialize;
use tbmq_auth::{
    index::Strategy,
    provider::{self, Provider},
    scram::{ITERATIONS, Nobody},
};
use tbmq_integration::{provider as configuration, seal::Keys};
use tbmq_proto::wire::{AuthProvider, AuthSetting, auth_setting::Setting};

use super::{http::Http, jwks::Jwt};

/// Key of the order of providers.
const PROVIDERS_KEY: &str = "providers";

/// Key of the secrets.
const SECRETS_KEY: &str = "secrets";

/// Before the name of a provider.
const PROVIDER_PREFIX: &str = "provider/";

/// How clients prove who they are.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// In which providers are asked, enabled or not.
    pub(crate) order: [Provider; 4],
    pub(crate) basic: Provided<Strategy>,
    pub(crate) x509: Provided<()>,
    pub(crate) jwt: Provided<Arc<Jwt>>,
    pub(crate) http: Provided<Arc<Http>>,
    pub(crate) scram: Provided<()>,
    /// Unless the settings say otherwise, of this process alone.
    pub(crate) nobody: Arc<Nobody>,
    /// Why what was told last of a provider can't be used.
    pub(crate) problems: BTreeMap<Provider, Box<str>>,
    /// Grow with each change that clients are judged again for.
    generations: [u64; Provider::ALL.len()],
}

/// A provider's settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Provided<T> {
    #[default]
    Disabled,
    Enabled(T),
    /// It is to be enabled, but can't be used, and why.
    Broken(Box<str>),
}

impl<T> Provided<T> {
    pub(crate) fn is_disabled(&self) -> bool {
        matches!(self, Self::Disabled)
    }

    fn is_enabled(&self) -> bool {
        matches!(self, Self::Enabled(_))
    }

    fn of(enabled: bool, set_up: Result<T, String>) -> Self {
        match set_up {
            _ if !enabled => Self::Disabled,
            Ok(settings) => Self::Enabled(settings),
            Err(reason) => Self::Broken(reason.into()),
        }
    }
}

/// 32 random bytes.
pub(crate) fn random_key() -> [u8; 32] {
    let mut key = [0; 32];
    SystemRandom::new().fill(&mut key).expect("the system has random bytes");
    key
}

impl Default for Settings {
    /// Nobody is asked for anything.
    fn default() -> Self {
        Self {
            order: provider::ORDER,
            basic: Provided::Disabled,
            x509: Provided::Disabled,
            jwt: Provided::Disabled,
            http: Provided::Disabled,
            scram: Provided::Disabled,
            nobody: Nobody::new(random_key(), ITERATIONS).into(),
            problems: BTreeMap::new(),
            generations: [0; Provider::ALL.len()],
        }
    }
}

impl Settings {
    /// Those that are asked about a CONNECT without a method, in their order.
    pub(crate) fn asked(&self) -> impl DoubleEndedIterator<Item = Provider> {
        self.order.into_iter().filter(|provider| !self.is_disabled(*provider))
    }

    /// Whether nobody is asked for anything.
    pub(crate) fn are_open(&self) -> bool {
        Provider::ALL.into_iter().all(|provider| self.is_disabled(provider))
    }

    fn is_enabled(&self, provider: Provider) -> bool {
        match provider {
            Provider::Basic => self.basic.is_enabled(),
            Provider::X509 => self.x509.is_enabled(),
            Provider::Jwt => self.jwt.is_enabled(),
            Provider::Http => self.http.is_enabled(),
            Provider::Scram => self.scram.is_enabled(),
        }
    }

    /// Which settings of a provider these are.
    pub(crate) fn generation(&self, provider: Provider) -> u64 {
        self.generations[provider as usize]
    }

    /// Notes of which providers the clients are to be judged again, as these settings come after those: of those that
    /// are disabled, or that judge otherwise now what they know of a client. A provider that came to be unusable has
    /// taken nothing back.
    pub(crate) fn renew(&mut self, before: &Self) -> Vec<Provider> {
        let is_renewed = |provider: &Provider| match provider {
            provider if self.is_disabled(*provider) => !before.is_disabled(*provider),
            Provider::Basic => self.basic.is_enabled() && self.basic != before.basic,
            Provider::Jwt => match (&self.jwt, &before.jwt) {
                (Provided::Enabled(now), Provided::Enabled(before)) => !Arc::ptr_eq(now, before),
                (now, _) => now.is_enabled(),
            },
            Provider::X509 | Provider::Http | Provider::Scram => false,
        };
        let renewed: Vec<Provider> = Provider::ALL.into_iter().filter(is_renewed).collect();
        for provider in &renewed {
            self.generations[*provider as usize] += 1;
        }
        renewed
    }

    pub(crate) fn is_disabled(&self, provider: Provider) -> bool {
        match provider {
            Provider::Basic => self.basic.is_disabled(),
            Provider::X509 => self.x509.is_disabled(),
            Provider::Jwt => self.jwt.is_disabled(),
            Provider::Http => self.http.is_disabled(),
            Provider::Scram => self.scram.is_disabled(),
        }
    }

    /// Takes what stands under a key; `None`: nothing does any more. Its secrets are opened with `keys`.
    ///
    /// # Errors
    /// Why it can't be used; what is safe is taken all the same.
    pub(crate) fn apply(
        &mut self,
        key: &str,
        setting: Option<Result<Setting, String>>,
        keys: &Keys,
    ) -> Result<(), String> {
        match (key, setting) {
            (PROVIDERS_KEY, None) => self.order = provider::ORDER,
            (PROVIDERS_KEY, Some(Ok(Setting::Providers(providers)))) => {
                let named: Vec<_> = providers.priorities.iter().map(|name| Provider::of_name(name)).collect();
                self.order = provider::order(named.iter().copied().flatten());
                if let Some(at) = named.iter().position(Option::is_none) {
                    return Err(format!("{:?} is no provider", providers.priorities[at]));
                }
            }
            (SECRETS_KEY, None) => {}
            (SECRETS_KEY, Some(Ok(Setting::Secrets(secrets)))) => {
                let key = secrets.pretence_key[..].try_into().map_err(|_| "the key has not 32 bytes")?;
                self.nobody = Nobody::new(key, ITERATIONS).into();
            }
            (PROVIDERS_KEY | SECRETS_KEY, Some(setting)) => {
                return Err(setting.err().unwrap_or_else(|| "it is not what its key says".to_owned()));
            }
            (key, setting) => {
                let name = key.strip_prefix(PROVIDER_PREFIX);
                let provider =
                    name.and_then(Provider::of_name).ok_or("this release does not know the key")?;
                let told = match setting {
                    None => Ok(AuthProvider::default()),
                    Some(Ok(Setting::Provider(told))) if told.r#type == provider.name() => Ok(told),
                    Some(Ok(_)) => Err("it is not what its key says".to_owned()),
                    Some(Err(reason)) => Err(reason),
                };
                let done = self.set_up(provider, told, keys);
                match &done {
                    Ok(()) => self.problems.remove(&provider),
                    Err(reason) => self.problems.insert(provider, reason.as_str().into()),
                };
                return done;
            }
        }
        Ok(())
    }

    fn set_up(
        &mut self,
        provider: Provider,
        told: Result<AuthProvider, String>,
        keys: &Keys,
    ) -> Result<(), String> {
        let enabled = told.as_ref().map_or(true, |told| told.enabled);
        let text = match told.map(|told| configuration::open(keys, &told)) {
            Ok(Err(unreadable)) if enabled && self.is_enabled(provider) => {
                return Err(format!("{unreadable}; what was set before goes on to count"));
            }
            Ok(opened) => opened.map_err(|unreadable| unreadable.to_string()),
            Err(reason) => Err(reason),
        };
        let broken = match provider {
            Provider::Basic => {
                self.basic = Provided::of(enabled, text.and_then(|text| strategy(&text)));
                self.basic.reason()
            }
            Provider::X509 => {
                self.x509 = Provided::of(enabled, text.map(drop));
                self.x509.reason()
            }
            Provider::Scram => {
                self.scram = Provided::of(enabled, text.map(drop));
                self.scram.reason()
            }
            Provider::Jwt => {
                let before = match &self.jwt {
                    Provided::Enabled(jwt) => Some(&**jwt),
                    Provided::Disabled | Provided::Broken(_) => None,
                };
                let set_up = text.and_then(|text| Jwt::open(&text, before));
                self.jwt = Provided::of(enabled, set_up.map(Arc::new));
                self.jwt.reason()
            }
            Provider::Http => {
                let set_up = text.and_then(|text| Http::open(&text));
                self.http = Provided::of(enabled, set_up.map(Arc::new));
                self.http.reason()
            }
        };
        broken.map_or(Ok(()), |reason| Err(reason.to_owned()))
    }
}

impl<T> Provided<T> {
    fn reason(&self) -> Option<&str> {
        match self {
            Self::Broken(reason) => Some(reason),
            Self::Disabled | Self::Enabled(_) => None,
        }
    }
}

/// TBMQ's configuration of `MQTT_BASIC`; what is missing, or `null`, is as TBMQ has it.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Basic {
    auth_strategy: Option<AuthStrategy>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum AuthStrategy {
    ClientId,
    Username,
    ClientIdAndUsername,
}

fn strategy(text: &str) -> Result<Strategy, String> {
    if text.is_empty() {
        return Ok(Strategy::default());
    }
    let basic: Option<Basic> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    Ok(match basic.unwrap_or_default().auth_strategy {
        None => Strategy::default(),
        Some(AuthStrategy::ClientId) => Strategy::ClientId,
        Some(AuthStrategy::Username) => Strategy::UserName,
        Some(AuthStrategy::ClientIdAndUsername) => Strategy::Both,
    })
}

/// The setting of a record's value.
pub(crate) fn decoded(value: &[u8]) -> Result<(u64, Setting), String> {
    use prost::Message as _;
    let AuthSetting { revision, setting } = AuthSetting::decode(value).map_err(|error| error.to_string())?;
    Ok((revision, setting.ok_or("it has no setting that this release knows")?))
}
