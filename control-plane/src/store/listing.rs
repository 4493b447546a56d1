//! Pages of integrations in any order that the API knows, by keyset: each page begins after the keys of a row, so that
//! a late page costs what the first one does.

use sea_orm::{
    ColumnTrait as _, Condition, EntityTrait as _, ExprTrait as _, Order, PaginatorTrait as _,
    QueryFilter as _, QueryOrder as _, QuerySelect as _, Select, sea_query::Expr,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Error, PAGE_ROWS_MAX, Row, Store, containing::contains, entity, fault};
use entity::integration::{Column, Entity};

/// What a page of integrations is to hold, and in which order.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Case-insensitive part of the name.
    pub text: String,
    /// The name.
    pub name: Option<String>,
    /// The kind, as it is written on the wire.
    pub kind: Option<String>,
    /// Whether it is enabled.
    pub enabled: Option<bool>,
    /// The order; rows that are equal by it come in the order of their ids.
    pub order: Vec<Sort>,
    /// Only rows after the one with these keys.
    pub after: Option<Place>,
    /// Rows at most; never more than [`PAGE_ROWS_MAX`].
    pub limit: u64,
}

/// A key of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sort {
    /// By what.
    pub key: SortKey,
    /// From the greatest on.
    pub descending: bool,
}

/// What integrations can be ordered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SortKey {
    /// The name, which is unique.
    Name,
    /// The kind.
    Kind,
    /// When it was created.
    Created,
    /// When it was changed last.
    Updated,
    /// The revision, which is unique.
    Revision,
}

/// Where a row stands in an order: one key for each [`Sort`], and its id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The keys.
    pub keys: Vec<PlaceKey>,
    /// The id.
    pub id: Uuid,
}

/// A key of a [`Place`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PlaceKey {
    /// A number or a time.
    Number(i64),
    /// A text.
    Text(String),
}

impl SortKey {
    fn of(self, row: &Row) -> PlaceKey {
        match self {
            Self::Name => PlaceKey::Text(row.name.clone()),
            Self::Kind => PlaceKey::Text(row.kind.to_string()),
            Self::Created => PlaceKey::Number(row.created_ms),
            Self::Updated => PlaceKey::Number(row.updated_ms),
            Self::Revision => PlaceKey::Number(row.revision as i64),
        }
    }

    fn column(self) -> Column {
        match self {
            Self::Name => Column::Name,
            Self::Kind => Column::Kind,
            Self::Created => Column::CreatedMs,
            Self::Updated => Column::UpdatedMs,
            Self::Revision => Column::Revision,
        }
    }

    fn is_unique(self) -> bool {
        matches!(self, Self::Name | Self::Revision)
    }
}

impl Place {
    /// Where a row stands.
    pub fn of(row: &Row, order: &[Sort]) -> Self {
        Self { keys: order.iter().map(|sort| sort.key.of(row)).collect(), id: row.id.0 }
    }

    /// Whether this can be a place of that order: whoever sent it may have made it up.
    pub fn fits(&self, order: &[Sort]) -> bool {
        let fits = |(key, sort): (&PlaceKey, &Sort)| match key {
            PlaceKey::Text(text) => matches!(sort.key, SortKey::Name | SortKey::Kind) && !text.contains('\0'),
            PlaceKey::Number(_) => !matches!(sort.key, SortKey::Name | SortKey::Kind),
        };
        self.keys.len() == order.len() && self.keys.iter().zip(order).all(fits)
    }
}

impl Listing {
    fn select(&self) -> Select<Entity> {
        let mut query = Entity::find();
        if !self.text.is_empty() {
            query = query.filter(contains(Column::Name, &self.text));
        }
        if let Some(name) = &self.name {
            query = query.filter(Column::Name.eq(name.as_str()));
        }
        if let Some(kind) = &self.kind {
            query = query.filter(Column::Kind.eq(kind.as_str()));
        }
        if let Some(enabled) = self.enabled {
            query = query.filter(Column::Enabled.eq(enabled));
        }
        query
    }

    /// The columns of the order, up to the first that no two rows share.
    fn columns(&self) -> Vec<(Column, bool)> {
        let unique = self.order.iter().position(|sort| sort.key.is_unique());
        let keys = self.order.iter().take(unique.map_or(usize::MAX, |at| at + 1));
        let id = unique.is_none().then_some((Column::Id, false));
        keys.map(|sort| (sort.key.column(), sort.descending)).chain(id).collect()
    }

    /// `a > x OR (a = x AND b > y) OR ...`, by the order's directions.
    fn beyond(&self, place: &Place) -> Condition {
        let keys = place.keys.iter().map(|key| match key {
            PlaceKey::Number(number) => Expr::value(*number),
            PlaceKey::Text(text) => Expr::value(text.as_str()),
        });
        let id = Expr::value(place.id);
        let columns = self.columns();
        let is_by_id = columns.last().is_some_and(|(column, _)| matches!(column, Column::Id));
        let count = columns.len() - usize::from(is_by_id);
        let values: Vec<Expr> = keys.take(count).chain(is_by_id.then_some(id)).collect();
        let mut any = Condition::any();
        for (i, ((column, descending), value)) in columns.iter().zip(&values).enumerate() {
            let equal = columns.iter().zip(&values).take(i);
            let mut all = equal.fold(Condition::all(), |all, ((column, _), value)| {
                all.add(Expr::col(*column).eq(value.clone()))
            });
            let column = Expr::col(*column);
            all = all.add(if *descending { column.lt(value.clone()) } else { column.gt(value.clone()) });
            any = any.add(all);
        }
        any
    }
}

impl Store {
    /// A page of integrations.
    ///
    /// # Errors
    /// The database's.
    pub async fn list(&self, listing: &Listing) -> Result<Vec<Row>, Error> {
        let mut query = listing.select();
        if let Some(place) = &listing.after {
            query = query.filter(listing.beyond(place));
        }
        for (column, descending) in listing.columns() {
            query = query.order_by(column, if descending { Order::Desc } else { Order::Asc });
        }
        let limit = Ord::min(listing.limit, PAGE_ROWS_MAX);
        let models = query.limit(limit).all(&self.connection).await.map_err(|error| fault(&error))?;
        models.into_iter().map(|model| self.row(model)).collect()
    }

    /// How many integrations a listing has over all pages.
    ///
    /// # Errors
    /// The database's.
    pub async fn count(&self, listing: &Listing) -> Result<u64, Error> {
        listing.select().count(&self.connection).await.map_err(|error| fault(&error))
    }
}
