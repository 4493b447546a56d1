//! Credentials of clients.

use std::collections::{HashMap, HashSet};

use sea_orm::{
    ActiveValue::Set, ColumnTrait as _, Condition, DatabaseTransaction, EntityTrait as _,
    PaginatorTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _, Select, sea_query::OnConflict,
};
use tbmq_auth::credentials::{ClientType, CommonName, Credentials, Proof};
use uuid::Uuid;

use super::{
    AuthMark, AuthTopic, Error, Item, PAGE_ROWS_MAX, STATEMENT_ROWS_MAX, Saved, Store, auth, containing,
    entity, fault, integration::remember, next_revision, take_revisions,
};
use crate::{
    auth::{digest, proof},
    fault::Point,
};
use entity::credentials::{ActiveModel, Column, Entity, Model};

/// What errors call them.
const WHAT: &str = "Credentials";

/// A stored credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialsRow {
    /// The credential, with its revision.
    pub credentials: Credentials,
    /// Epoch ms.
    pub created_ms: i64,
    /// Epoch ms.
    pub updated_ms: i64,
}

impl CredentialsRow {
    /// What it is on the bus.
    pub fn item(&self) -> Item {
        item(self.credentials.id)
    }
}

/// What a page of credentials is to hold; pages are in the order of names.
#[derive(Clone, Debug, Default)]
pub struct CredentialsListing {
    /// Case-insensitive part of the name.
    pub text: String,
    /// Name of the proof's type.
    pub kind: Option<&'static str>,
    /// What clients are treated as.
    pub client_type: Option<ClientType>,
    /// Case-insensitive part of the client id.
    pub client_id: String,
    /// Case-insensitive part of the user name.
    pub user_name: String,
    /// Case-insensitive part of the common name.
    pub common_name: String,
    /// Only those after this name and id.
    pub after: Option<(String, Uuid)>,
    /// Rows at most; never more than [`PAGE_ROWS_MAX`].
    pub limit: u64,
}

/// What became of a credential that was imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Imported {
    /// It is there now.
    Saved(Uuid),
    /// Another credential is for the same clients.
    Taken,
    /// Another credential has its id.
    IdTaken,
}

impl Store {
    /// Saves a new credential with its dirty mark.
    ///
    /// # Errors
    /// `KeyTaken`, `UuidTaken`, `Replayed`, `RequestReused`, or the database's.
    pub async fn create_credentials(
        &self,
        mut credentials: Credentials,
        saved: Saved<'_>,
    ) -> Result<CredentialsRow, Error> {
        let transaction = self.begin().await?;
        let revision = next_revision(&transaction).await?;
        remember(&transaction, saved, credentials.id).await?;
        // The counter's lock keeps others from creating in between.
        if Entity::find_by_id(credentials.id)
            .one(&transaction)
            .await
            .map_err(|error| fault(&error))?
            .is_some()
        {
            return Err(Error::UuidTaken(credentials.id));
        }
        credentials.revision = revision as u64;
        let row = CredentialsRow { credentials, created_ms: saved.now_ms, updated_ms: saved.now_ms };
        self.commit_credentials(transaction, row).await
    }

    /// Replaces a credential that still has revision `base`. One that is so already stays as it is.
    ///
    /// # Errors
    /// `Absent`, `Stale`, `KeyTaken`, `Replayed`, `RequestReused`, or the database's.
    pub async fn update_credentials(
        &self,
        base: u64,
        mut credentials: Credentials,
        saved: Saved<'_>,
    ) -> Result<CredentialsRow, Error> {
        let transaction = self.begin().await?;
        let revision = next_revision(&transaction).await?;
        remember(&transaction, saved, credentials.id).await?;
        let before = locked(&transaction, credentials.id, Some(base)).await?;
        credentials.revision = before.credentials.revision;
        if credentials == before.credentials {
            // The request is remembered all the same, the revision is given back.
            if saved.request.is_some() {
                transaction.commit().await.map_err(|error| fault(&error))?;
            }
            return Ok(before);
        }
        credentials.revision = revision as u64;
        let row = CredentialsRow { credentials, updated_ms: saved.now_ms, ..before };
        self.commit_credentials(transaction, row).await
    }

    /// Removes a credential; its record follows by the relayer.
    ///
    /// # Errors
    /// `Absent`, `Stale`, `Replayed`, `RequestReused`, or the database's.
    pub async fn delete_credentials(
        &self,
        id: Uuid,
        base: Option<u64>,
        saved: Saved<'_>,
    ) -> Result<(), Error> {
        let transaction = self.begin().await?;
        let revision = next_revision(&transaction).await?;
        remember(&transaction, saved, id).await?;
        locked(&transaction, id, base).await?;
        Entity::delete_by_id(id).exec(&transaction).await.map_err(|error| fault(&error))?;
        auth::mark(&transaction, &[mark(id, revision as u64)], saved.now_ms).await?;
        self.faults.pass(Point::Saving).await;
        transaction.commit().await.map_err(|error| fault(&error))
    }

    /// Saves many in one transaction; tells of each what became of it, in their order. With `replace` those that are
    /// there already for the same clients are replaced, and keep their ids; a credential of MQTT basic without a
    /// password keeps the one that it had. Of those of one import that are for the same clients, the first is taken.
    ///
    /// # Errors
    /// The database's; nothing was saved.
    pub async fn import_credentials(
        &self,
        all: Vec<Credentials>,
        replace: bool,
        now_ms: i64,
    ) -> Result<Vec<Imported>, Error> {
        if all.is_empty() {
            return Ok(Vec::new());
        }
        let transaction = self.begin().await?;
        let last = take_revisions(&transaction, all.len()).await?;
        let first = last - all.len() as i64 + 1;
        let digests: Vec<String> = all.iter().map(|one| digest(&one.unique_key())).collect();
        let there = found_by_digest(&transaction, &digests).await?;
        let ids: Vec<Uuid> = all.iter().map(|one| one.id).collect();
        let mut ids = existing(&transaction, &ids).await?;
        let mut done_keys: HashSet<&str> = HashSet::with_capacity(all.len());
        let (mut rows, mut outcomes) = (Vec::with_capacity(all.len()), Vec::with_capacity(all.len()));
        for ((mut credentials, key), revision) in all.into_iter().zip(&digests).zip(first..) {
            let before = there.get(key.as_str());
            if !done_keys.insert(key) || (before.is_some() && !replace) {
                outcomes.push(Imported::Taken);
                continue;
            }
            match before {
                Some(before) => {
                    credentials.id = before.credentials.id;
                    keep_password(&mut credentials.proof, &before.credentials.proof);
                }
                None if !ids.insert(credentials.id) => {
                    outcomes.push(Imported::IdTaken);
                    continue;
                }
                None => {}
            }
            outcomes.push(Imported::Saved(credentials.id));
            // What is so already is not written again.
            credentials.revision = before.map_or(0, |before| before.credentials.revision);
            if before.is_some_and(|before| before.credentials == credentials) {
                continue;
            }
            credentials.revision = revision as u64;
            let created_ms = before.map_or(now_ms, |before| before.created_ms);
            rows.push(CredentialsRow { credentials, created_ms, updated_ms: now_ms });
        }
        self.put_credentials(&transaction, &rows, now_ms).await?;
        transaction.commit().await.map_err(|error| fault(&error))?;
        Ok(outcomes)
    }

    /// What an import of these would come to, without saving.
    ///
    /// # Errors
    /// The database's.
    pub async fn would_import(&self, all: &[Credentials], replace: bool) -> Result<Vec<Imported>, Error> {
        let digests: Vec<String> = all.iter().map(|one| digest(&one.unique_key())).collect();
        let there = found_by_digest(&self.connection, &digests).await?;
        let ids: Vec<Uuid> = all.iter().map(|one| one.id).collect();
        let mut ids = existing(&self.connection, &ids).await?;
        let mut done = HashSet::new();
        let mut outcomes = Vec::with_capacity(all.len());
        for (credentials, key) in all.iter().zip(&digests) {
            let before = there.get(key.as_str());
            outcomes.push(match before {
                _ if !done.insert(key) => Imported::Taken,
                Some(_) if !replace => Imported::Taken,
                Some(before) => Imported::Saved(before.credentials.id),
                None if ids.insert(credentials.id) => Imported::Saved(credentials.id),
                None => Imported::IdTaken,
            });
        }
        Ok(outcomes)
    }

    /// One credential.
    ///
    /// # Errors
    /// `Absent`, or the database's.
    pub async fn get_credentials(&self, id: Uuid) -> Result<CredentialsRow, Error> {
        let found = self.find_credentials(&[id]).await?.pop();
        found.ok_or_else(|| Error::Absent { what: WHAT, name: format!("credentials/{id}") })
    }

    /// Those of these that are there.
    ///
    /// # Errors
    /// The database's.
    pub async fn find_credentials(&self, ids: &[Uuid]) -> Result<Vec<CredentialsRow>, Error> {
        let mut found = Vec::with_capacity(ids.len());
        for ids in ids.chunks(STATEMENT_ROWS_MAX) {
            let models = Entity::find()
                .filter(Column::Id.is_in(ids.iter().copied()))
                .all(&self.connection)
                .await
                .map_err(|error| fault(&error))?;
            found.extend(models.into_iter().map(row).collect::<Result<Vec<_>, _>>()?);
        }
        Ok(found)
    }

    /// Whether it could be saved beside all others.
    ///
    /// # Errors
    /// `KeyTaken` when another credential than this one is for the same clients, or the database's.
    pub async fn check_credentials_key(&self, credentials: &Credentials) -> Result<(), Error> {
        check_key(&self.connection, credentials).await
    }

    /// All credentials in the order of ids, in pages: those after `after`.
    ///
    /// # Errors
    /// The database's.
    pub async fn scan_credentials(&self, after: Option<Uuid>) -> Result<Vec<CredentialsRow>, Error> {
        let mut query = Entity::find();
        if let Some(after) = after {
            query = query.filter(Column::Id.gt(after));
        }
        let models = query
            .order_by_asc(Column::Id)
            .limit(PAGE_ROWS_MAX)
            .all(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        models.into_iter().map(row).collect()
    }

    /// A page of credentials.
    ///
    /// # Errors
    /// The database's.
    pub async fn list_credentials(&self, listing: &CredentialsListing) -> Result<Vec<CredentialsRow>, Error> {
        let mut query = listing.select();
        if let Some((name, id)) = &listing.after {
            let later = Condition::any()
                .add(Column::Name.gt(name.as_str()))
                .add(Condition::all().add(Column::Name.eq(name.as_str())).add(Column::Id.gt(*id)));
            query = query.filter(later);
        }
        let models = query
            .order_by_asc(Column::Name)
            .order_by_asc(Column::Id)
            .limit(Ord::min(listing.limit, PAGE_ROWS_MAX))
            .all(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        models.into_iter().map(row).collect()
    }

    /// How many credentials a listing has over all pages.
    ///
    /// # Errors
    /// The database's.
    pub async fn count_credentials(&self, listing: &CredentialsListing) -> Result<u64, Error> {
        listing.select().count(&self.connection).await.map_err(|error| fault(&error))
    }

    /// Writes a row that is for no other's clients, with its mark, and commits.
    async fn commit_credentials(
        &self,
        transaction: DatabaseTransaction,
        row: CredentialsRow,
    ) -> Result<CredentialsRow, Error> {
        check_key(&transaction, &row.credentials).await?;
        self.put_credentials(&transaction, std::slice::from_ref(&row), row.updated_ms).await?;
        self.faults.pass(Point::Saving).await;
        transaction.commit().await.map_err(|error| fault(&error))?;
        Ok(row)
    }

    /// Writes rows over those with their ids, and leaves their marks.
    async fn put_credentials(
        &self,
        transaction: &DatabaseTransaction,
        rows: &[CredentialsRow],
        now_ms: i64,
    ) -> Result<(), Error> {
        for chunk in rows.chunks(STATEMENT_ROWS_MAX) {
            Entity::insert_many(chunk.iter().map(model))
                .on_conflict(
                    OnConflict::column(Column::Id)
                        .update_columns([
                            Column::Name,
                            Column::ClientType,
                            Column::CredentialsType,
                            Column::CredentialsId,
                            Column::CredentialsDigest,
                            Column::CredentialsValue,
                            Column::ClientId,
                            Column::UserName,
                            Column::CommonName,
                            Column::Revision,
                            Column::UpdatedMs,
                        ])
                        .to_owned(),
                )
                .exec_without_returning(transaction)
                .await
                .map_err(|error| fault(&error))?;
        }
        let marks: Vec<AuthMark> =
            rows.iter().map(|row| mark(row.credentials.id, row.credentials.revision)).collect();
        auth::mark(transaction, &marks, now_ms).await
    }
}

impl CredentialsListing {
    fn select(&self) -> Select<Entity> {
        let mut query = Entity::find();
        let parts = [
            (Column::Name, &self.text),
            (Column::ClientId, &self.client_id),
            (Column::UserName, &self.user_name),
            (Column::CommonName, &self.common_name),
        ];
        for (column, part) in parts {
            if !part.is_empty() {
                query = query.filter(containing::contains(column, part));
            }
        }
        if let Some(kind) = self.kind {
            query = query.filter(Column::CredentialsType.eq(kind));
        }
        if let Some(client_type) = self.client_type {
            query = query.filter(Column::ClientType.eq(client_type_name(client_type)));
        }
        query
    }
}

fn item(id: Uuid) -> Item {
    Item { topic: AuthTopic::Credentials, row: id.to_string() }
}

fn mark(id: Uuid, revision: u64) -> AuthMark {
    AuthMark { item: item(id), record_key: id.to_string(), revision }
}

/// A credential of MQTT basic that comes without a password keeps the one that it had.
fn keep_password(proof: &mut Proof, before: &Proof) {
    if let (Proof::Basic { password_hash: hash @ None, .. }, Proof::Basic { password_hash: Some(held), .. }) =
        (proof, before)
    {
        *hash = Some(held.clone());
    }
}

async fn locked(
    transaction: &DatabaseTransaction,
    id: Uuid,
    base: Option<u64>,
) -> Result<CredentialsRow, Error> {
    let model = Entity::find_by_id(id).one(transaction).await.map_err(|error| fault(&error))?;
    let model = model.ok_or_else(|| Error::Absent { what: WHAT, name: format!("credentials/{id}") })?;
    let actual = model.revision as u64;
    match base {
        Some(expected) if expected != actual => Err(Error::Stale { expected, actual }),
        _ => row(model),
    }
}

async fn check_key(
    connection: &impl sea_orm::ConnectionTrait,
    credentials: &Credentials,
) -> Result<(), Error> {
    let key = credentials.unique_key();
    let others = Entity::find()
        .filter(Column::CredentialsDigest.eq(digest(&key)))
        .filter(Column::Id.ne(credentials.id))
        .count(connection)
        .await
        .map_err(|error| fault(&error))?;
    if others > 0 { Err(Error::KeyTaken(key)) } else { Ok(()) }
}

async fn found_by_digest(
    connection: &impl sea_orm::ConnectionTrait,
    digests: &[String],
) -> Result<HashMap<String, CredentialsRow>, Error> {
    let mut found = HashMap::new();
    for digests in digests.chunks(STATEMENT_ROWS_MAX) {
        let models = Entity::find()
            .filter(Column::CredentialsDigest.is_in(digests.iter().map(String::as_str)))
            .all(connection)
            .await
            .map_err(|error| fault(&error))?;
        for model in models {
            found.insert(model.credentials_digest.clone(), row(model)?);
        }
    }
    Ok(found)
}

async fn existing(connection: &impl sea_orm::ConnectionTrait, ids: &[Uuid]) -> Result<HashSet<Uuid>, Error> {
    let mut found = HashSet::new();
    for ids in ids.chunks(STATEMENT_ROWS_MAX) {
        let some: Vec<Uuid> = Entity::find()
            .select_only()
            .column(Column::Id)
            .filter(Column::Id.is_in(ids.iter().copied()))
            .into_tuple()
            .all(connection)
            .await
            .map_err(|error| fault(&error))?;
        found.extend(some);
    }
    Ok(found)
}

fn client_type_name(client_type: ClientType) -> &'static str {
    match client_type {
        ClientType::Device => "DEVICE",
        ClientType::Application => "APPLICATION",
    }
}

fn model(row: &CredentialsRow) -> ActiveModel {
    let credentials = &row.credentials;
    let (client_id, user_name, common_name) = match &credentials.proof {
        Proof::Basic { client_id, user_name, .. } => (client_id.clone(), user_name.clone(), None),
        Proof::X509 { common_name: CommonName::Literal(name) | CommonName::Pattern(name), .. } => {
            (None, None, Some(name.clone()))
        }
        Proof::Scram { user_name, .. } => (None, Some(user_name.clone()), None),
    };
    let key = credentials.unique_key();
    ActiveModel {
        id: Set(credentials.id),
        name: Set(credentials.name.clone()),
        client_type: Set(client_type_name(credentials.client_type).to_owned()),
        credentials_type: Set(proof::type_of(&credentials.proof).to_owned()),
        credentials_digest: Set(digest(&key)),
        credentials_id: Set(key),
        credentials_value: Set(proof::to_json(&credentials.proof)),
        client_id: Set(client_id),
        user_name: Set(user_name),
        common_name: Set(common_name),
        revision: Set(credentials.revision as i64),
        created_ms: Set(row.created_ms),
        updated_ms: Set(row.updated_ms),
    }
}

fn row(model: Model) -> Result<CredentialsRow, Error> {
    let corrupt =
        |what: &str| Error::Corrupt(format!("{what} of credentials {} that can't be read", model.id));
    let proof = proof::from_json(&model.credentials_type, &model.credentials_value);
    Ok(CredentialsRow {
        credentials: Credentials {
            id: model.id,
            revision: model.revision as u64,
            client_type: match model.client_type.as_str() {
                "DEVICE" => ClientType::Device,
                "APPLICATION" => ClientType::Application,
                _ => return Err(corrupt("a client type")),
            },
            proof: proof.ok_or_else(|| corrupt("a value"))?,
            name: model.name,
        },
        created_ms: model.created_ms,
        updated_ms: model.updated_ms,
    })
}
