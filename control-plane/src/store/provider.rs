//! How clients prove who they are: providers, who is asked first, and what all data planes share.

use std::{collections::BTreeMap, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use sea_orm::{
    ActiveValue::Set, ColumnTrait as _, Condition, ConnectionTrait, DatabaseTransaction, EntityTrait as _,
    QueryFilter as _, sea_query::OnConflict,
};
use tbmq_integration::seal::{Parted, Purpose, Unreadable};

use super::{AuthMark, AuthTopic, Error, Item, Sealing, Store, auth, entity, fault, next_revision};
use crate::{
    auth::{provider, record},
    vault,
};
use entity::{auth_provider, auth_setting};

/// A provider.
#[derive(Clone, PartialEq, Eq)]
pub struct ProviderRow {
    /// Its type.
    pub kind: String,
    /// Whether it is asked.
    pub enabled: bool,
    /// Its configuration, byte for byte; may hold secrets.
    pub configuration: String,
    /// How it is stored, if secrets of it are sealed.
    pub parted: Option<Arc<Parted>>,
    /// Why the secrets can't be opened: then masks stand in their places in `configuration`.
    pub unreadable: Option<Unreadable>,
    /// Of the last change; 0: it was never changed.
    pub revision: u64,
}

impl std::fmt::Debug for ProviderRow {
    // The configuration may hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProviderRow")
            .field("kind", &self.kind)
            .field("enabled", &self.enabled)
            .field("revision", &self.revision)
            .finish_non_exhaustive()
    }
}

impl ProviderRow {
    /// What it is until somebody changes it.
    pub(crate) fn new(kind: &str) -> Self {
        Self {
            kind: kind.to_owned(),
            enabled: false,
            configuration: "{}".to_owned(),
            parted: None,
            unreadable: None,
            revision: 0,
        }
    }

    /// What it is on the bus.
    pub fn item(&self) -> Item {
        setting_item(&format!("{}{}", record::PROVIDER, self.kind))
    }
}

/// A setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting {
    /// Who is asked first.
    Providers {
        /// Of the last change.
        revision: u64,
        /// Types of providers.
        priorities: Vec<String>,
    },
    /// What all data planes share.
    Secrets {
        /// When it was made.
        revision: u64,
        /// Random.
        pretence_key: Vec<u8>,
    },
}

/// The item of a setting.
pub(crate) fn setting_item(key: &str) -> Item {
    Item { topic: AuthTopic::Settings, row: key.to_owned() }
}

impl Store {
    /// The providers that were ever changed.
    ///
    /// # Errors
    /// The database's.
    pub async fn providers(&self) -> Result<Vec<ProviderRow>, Error> {
        let models = auth_provider::Entity::find().all(&self.connection).await;
        Ok(models.map_err(|error| fault(&error))?.into_iter().map(|model| self.provider_row(model)).collect())
    }

    /// Sets a provider that still has revision `base`. One that is so already stays as it is.
    ///
    /// # Errors
    /// `Stale`, `NotSealed`, or the database's.
    pub async fn set_provider(
        &self,
        base: u64,
        mut row: ProviderRow,
        now_ms: i64,
    ) -> Result<ProviderRow, Error> {
        let transaction = self.begin().await?;
        let revision = next_revision(&transaction).await? as u64;
        let model = auth_provider::Entity::find_by_id(row.kind.as_str())
            .one(&transaction)
            .await
            .map_err(|error| fault(&error))?;
        let before = model.map_or_else(|| ProviderRow::new(&row.kind), |model| self.provider_row(model));
        if before.revision != base {
            return Err(Error::Stale { expected: base, actual: before.revision });
        }
        row.revision = before.revision;
        // It may have been sealed anew meanwhile, which changes nothing.
        row.parted.clone_from(&before.parted);
        if row == before {
            return Ok(before);
        }
        row.revision = revision;
        row.unreadable = None;
        self.put_provider(&transaction, &mut row, now_ms).await?;
        let item = row.item();
        auth::mark(&transaction, &[AuthMark { record_key: item.row.clone(), item, revision }], now_ms)
            .await?;
        transaction.commit().await.map_err(|error| fault(&error))?;
        Ok(row)
    }

    /// Seals configurations with the first key that are not. They keep their revisions, for nothing of them has changed,
    /// and get dirty marks, so that they are sent again.
    ///
    /// # Errors
    /// The database's.
    pub async fn seal_providers(&self, now_ms: i64) -> Result<Sealing, Error> {
        use auth_provider::{Column, Entity};
        let mut done = Sealing::default();
        let Some(first) = self.vault.first() else { return Ok(done) };
        let is_other = Condition::any().add(Column::SealedKey.is_null()).add(Column::SealedKey.ne(first));
        let others = Entity::find().filter(is_other);
        if others.clone().one(&self.connection).await.map_err(|error| fault(&error))?.is_none() {
            return Ok(done);
        }
        let transaction = self.begin().await?;
        // Whoever changes a row comes before or after.
        next_revision(&transaction).await?;
        let mut marks = Vec::new();
        for model in others.all(&transaction).await.map_err(|error| fault(&error))? {
            let mut row = self.provider_row(model);
            if row.unreadable.is_some() {
                done.unreadable += 1;
                continue;
            }
            let had_any = row.parted.is_some();
            self.put_provider(&transaction, &mut row, now_ms).await?;
            if had_any || row.parted.is_some() {
                let item = row.item();
                marks.push(AuthMark { record_key: item.row.clone(), item, revision: row.revision });
                done.sealed += 1;
            }
        }
        auth::mark(&transaction, &marks, now_ms).await?;
        transaction.commit().await.map_err(|error| fault(&error))?;
        Ok(done)
    }

    /// How many providers have their secrets sealed with each key.
    ///
    /// # Errors
    /// The database's.
    pub async fn sealed_providers_by_key(&self) -> Result<BTreeMap<String, u64>, Error> {
        let mut counts = BTreeMap::new();
        for row in self.providers().await? {
            if let Some(parted) = &row.parted {
                *counts.entry(parted.sealed.key_id.clone()).or_default() += 1;
            }
        }
        Ok(counts)
    }

    /// The settings that were ever made.
    ///
    /// # Errors
    /// The database's.
    pub async fn auth_settings(&self) -> Result<Vec<Setting>, Error> {
        let models = auth_setting::Entity::find().all(&self.connection).await;
        models.map_err(|error| fault(&error))?.into_iter().map(setting).collect()
    }

    /// Who is asked first, and its revision; 0: it was never set.
    ///
    /// # Errors
    /// The database's.
    pub async fn priorities(&self) -> Result<(u64, Vec<String>), Error> {
        priorities(&self.connection).await
    }

    /// Sets who is asked first, if it still has revision `base`.
    ///
    /// # Errors
    /// `Stale`, or the database's.
    pub async fn set_priorities(
        &self,
        base: Option<u64>,
        order: Vec<String>,
        now_ms: i64,
    ) -> Result<(u64, Vec<String>), Error> {
        let transaction = self.begin().await?;
        let revision = next_revision(&transaction).await? as u64;
        let before = priorities(&transaction).await?;
        if let Some(expected) = base.filter(|expected| *expected != before.0) {
            return Err(Error::Stale { expected, actual: before.0 });
        }
        if before.0 > 0 && before.1 == order {
            return Ok(before);
        }
        let value = serde_json::to_string(&order).expect("texts are always JSON");
        put_setting(&transaction, record::PROVIDERS, value, revision, now_ms).await?;
        transaction.commit().await.map_err(|error| fault(&error))?;
        Ok((revision, order))
    }

    /// Keeps this as what all data planes share, unless there is something already.
    ///
    /// # Errors
    /// The database's.
    pub async fn make_auth_secrets(&self, pretence_key: [u8; 32], now_ms: i64) -> Result<(), Error> {
        let find = || auth_setting::Entity::find_by_id(record::SECRETS);
        if find().one(&self.connection).await.map_err(|error| fault(&error))?.is_some() {
            return Ok(());
        }
        let transaction = self.begin().await?;
        let revision = next_revision(&transaction).await? as u64;
        if find().one(&transaction).await.map_err(|error| fault(&error))?.is_none() {
            let value = BASE64_STANDARD.encode(pretence_key);
            put_setting(&transaction, record::SECRETS, value, revision, now_ms).await?;
        }
        transaction.commit().await.map_err(|error| fault(&error))
    }

    async fn put_provider(
        &self,
        transaction: &DatabaseTransaction,
        row: &mut ProviderRow,
        now_ms: i64,
    ) -> Result<(), Error> {
        use auth_provider::{ActiveModel, Column, Entity};
        let document = provider::wrap(&row.configuration);
        let purpose = Purpose::Revision(row.revision);
        let id = provider::sealed_for(&row.kind);
        row.parted = self.vault.part_by(Some(provider::schema()), id, purpose, &document)?;
        let parted = row.parted.as_deref();
        let plain = parted.map_or(document.as_str(), |parted| &parted.plain);
        let model = ActiveModel {
            r#type: Set(row.kind.clone()),
            enabled: Set(row.enabled),
            configuration: Set(provider::unwrap(plain).to_owned()),
            sealed: Set(parted.map(|parted| vault::to_text(&parted.sealed))),
            sealed_key: Set(self.vault.first().map(ToOwned::to_owned)),
            revision: Set(row.revision as i64),
            updated_ms: Set(now_ms),
        };
        Entity::insert(model)
            .on_conflict(
                OnConflict::column(Column::Type)
                    .update_columns([
                        Column::Enabled,
                        Column::Configuration,
                        Column::Sealed,
                        Column::SealedKey,
                        Column::Revision,
                        Column::UpdatedMs,
                    ])
                    .to_owned(),
            )
            .exec_without_returning(transaction)
            .await
            .map_err(|error| fault(&error))?;
        Ok(())
    }

    fn provider_row(&self, model: auth_provider::Model) -> ProviderRow {
        let parted = model.sealed.as_deref().map(|sealed| {
            let plain: Arc<str> = provider::wrap(&model.configuration).into();
            Ok(Arc::new(Parted { plain, sealed: vault::from_text(sealed)? }))
        });
        let (parted, malformed) = match parted.transpose() {
            Ok(parted) => (parted, None),
            Err(error) => (None, Some(error)),
        };
        let id = provider::sealed_for(&model.r#type);
        let opened = parted.as_deref().map(|parted| self.vault.open(id, parted));
        let (configuration, unreadable) = match opened {
            None => (model.configuration, malformed),
            Some(Ok(document)) => (provider::unwrap(&document).to_owned(), None),
            Some(Err(error)) => (model.configuration, Some(error)),
        };
        ProviderRow {
            kind: model.r#type,
            enabled: model.enabled,
            configuration,
            parted,
            unreadable,
            revision: model.revision as u64,
        }
    }
}

async fn put_setting(
    transaction: &DatabaseTransaction,
    name: &str,
    value: String,
    revision: u64,
    now_ms: i64,
) -> Result<(), Error> {
    use auth_setting::{ActiveModel, Column, Entity};
    let model = ActiveModel {
        name: Set(name.to_owned()),
        value: Set(value),
        revision: Set(revision as i64),
        updated_ms: Set(now_ms),
    };
    Entity::insert(model)
        .on_conflict(
            OnConflict::column(Column::Name)
                .update_columns([Column::Value, Column::Revision, Column::UpdatedMs])
                .to_owned(),
        )
        .exec_without_returning(transaction)
        .await
        .map_err(|error| fault(&error))?;
    let mark = AuthMark { item: setting_item(name), record_key: name.to_owned(), revision };
    auth::mark(transaction, &[mark], now_ms).await
}

async fn priorities(connection: &impl ConnectionTrait) -> Result<(u64, Vec<String>), Error> {
    let model = auth_setting::Entity::find_by_id(record::PROVIDERS).one(connection).await;
    match model.map_err(|error| fault(&error))?.map(setting).transpose()? {
        Some(Setting::Providers { revision, priorities }) => Ok((revision, priorities)),
        _ => Ok((0, provider::PRIORITIES.map(ToOwned::to_owned).to_vec())),
    }
}

fn setting(model: auth_setting::Model) -> Result<Setting, Error> {
    let corrupt = || Error::Corrupt(format!("setting {} that can't be read", model.name));
    let revision = model.revision as u64;
    match model.name.as_str() {
        record::PROVIDERS => Ok(Setting::Providers {
            revision,
            priorities: serde_json::from_str(&model.value).map_err(|_| corrupt())?,
        }),
        record::SECRETS => Ok(Setting::Secrets {
            revision,
            pretence_key: BASE64_STANDARD.decode(&model.value).map_err(|_| corrupt())?,
        }),
        _ => Err(corrupt()),
    }
}
