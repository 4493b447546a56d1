//! The lease that elects the relayer.
//!
//! No clock is compared between machines: a holder counts `beat` up, and whoever sees it stand still for the length
//! of the lease, by his own monotonic clock, takes over.

use sea_orm::{
    ActiveValue::Set, ColumnTrait as _, EntityTrait as _, ExprTrait as _, QueryFilter as _, sea_query::Expr,
    sea_query::OnConflict,
};

use super::{Error, Store, entity, fault};

/// A lease that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Counts up with every new holder.
    pub fencing: u64,
    beat: i64,
}

/// A lease as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Service id of the holder; empty when it was given back.
    pub holder: String,
    /// Counts up with every new holder.
    pub fencing: u64,
    /// Counts up with every renewal.
    pub beat: i64,
}

impl Store {
    /// How a lease stands; creates it, free, when it does not exist.
    ///
    /// # Errors
    /// The database's.
    pub async fn observe_lease(&self, name: &str) -> Result<Observed, Error> {
        if let Some(observed) = self.read_lease(name).await? {
            return Ok(observed);
        }
        let model = entity::lease::ActiveModel {
            name: Set(name.to_owned()),
            holder: Set(String::new()),
            fencing: Set(0),
            beat: Set(0),
        };
        entity::lease::Entity::insert(model)
            .on_conflict(OnConflict::column(entity::lease::Column::Name).do_nothing().to_owned())
            .try_insert()
            .exec_without_returning(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        self.read_lease(name).await?.ok_or_else(|| Error::Corrupt(format!("no lease {name}")))
    }

    async fn read_lease(&self, name: &str) -> Result<Option<Observed>, Error> {
        let model = entity::lease::Entity::find_by_id(name.to_owned())
            .one(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        Ok(model.map(|model| Observed {
            holder: model.holder,
            fencing: model.fencing as u64,
            beat: model.beat,
        }))
    }

    /// Takes a lease that still stands as it was seen; `None` when it does not.
    ///
    /// # Errors
    /// The database's.
    pub async fn take_lease(
        &self,
        name: &str,
        seen: &Observed,
        holder: &str,
    ) -> Result<Option<Lease>, Error> {
        let (fencing, beat) = (seen.fencing as i64 + 1, seen.beat + 1);
        let taken =
            self.write_lease(name, seen.fencing as i64, Some(seen.beat), holder, fencing, beat).await?;
        Ok(taken.then_some(Lease { fencing: fencing as u64, beat }))
    }

    /// Renews a lease; `false` when it was taken by another.
    ///
    /// # Errors
    /// The database's; the lease may then have been renewed or not.
    pub async fn renew_lease(&self, name: &str, lease: &mut Lease, holder: &str) -> Result<bool, Error> {
        // Not compared: a renewal that seemed to fail may have been done.
        let fencing = lease.fencing as i64;
        lease.beat += 1;
        self.write_lease(name, fencing, None, holder, fencing, lease.beat).await
    }

    /// Gives a lease back, so that the next holder need not wait.
    ///
    /// # Errors
    /// The database's.
    pub async fn release_lease(&self, name: &str, lease: Lease) -> Result<(), Error> {
        let fencing = lease.fencing as i64;
        self.write_lease(name, fencing, None, "", fencing, lease.beat + 1).await.map(|_| ())
    }

    async fn write_lease(
        &self,
        name: &str,
        held_fencing: i64,
        held_beat: Option<i64>,
        holder: &str,
        fencing: i64,
        beat: i64,
    ) -> Result<bool, Error> {
        use entity::lease::Column;
        let mut query = entity::lease::Entity::update_many()
            .col_expr(Column::Holder, Expr::value(holder))
            .col_expr(Column::Fencing, Expr::value(fencing))
            .col_expr(Column::Beat, Expr::value(beat))
            .filter(Column::Name.eq(name))
            .filter(Column::Fencing.eq(held_fencing));
        if let Some(beat) = held_beat {
            query = query.filter(Expr::col(Column::Beat).eq(beat));
        }
        let result = query.exec(&self.connection).await.map_err(|error| fault(&error))?;
        Ok(result.rows_affected == 1)
    }
}
