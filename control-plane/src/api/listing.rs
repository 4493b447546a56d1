//! `ListIntegrations`: order (AIP-132), filter (AIP-160), pages (AIP-158), views and read masks (AIP-157).

use std::{collections::HashMap, time::Duration};

use tbmq_integration::entity::{Document, Violation};
use tbmq_proto::{
    control::{
        Integration, IntegrationStatus, IntegrationView, ListIntegrationsRequest, ListIntegrationsResponse,
    },
    ids::IntegrationId,
};
use tonic::Status;

use super::{
    error,
    filter::{Filter, Subject},
    integration::Integrations,
    mask::{LAG, ReadMask},
    page,
};
use crate::store::{Listing, Place, Row, Sort, SortKey};

/// Rows that are read from the database at a time: their documents may be large.
const CHUNK: u64 = 128;

/// Rows that one call looks at. A page that ends for this reason may be short or empty, and has a token.
const LOOKED_MAX: usize = 10_000;

/// Bytes of documents on a page, so that it stays below the 4 MiB that clients take by default. At least one row is on
/// each page.
const PAGE_BYTES_MAX: usize = 3 << 20;

/// `total_size` when nobody has counted.
const NOT_COUNTED: i64 = -1;

/// How long the bus may take to tell the backlogs of a page.
const LAG_PATIENCE: Duration = Duration::from_secs(2);

/// What a request asks for.
struct Question {
    filter: Filter,
    mask: ReadMask,
    size: usize,
    with_lag: bool,
    /// Rows that are looked at.
    looked_max: usize,
    /// What the database is asked for first.
    listing: Listing,
    /// What page tokens are bound to.
    text: String,
}

impl Question {
    fn read(request: ListIntegrationsRequest) -> Result<Self, Status> {
        let size = page::size(request.page_size)?;
        let mask = ReadMask::parse(request.read_mask)?;
        let mut violations = Vec::new();
        if request.text_search.contains('\0') {
            violations.push(Violation::new("text_search", "must not contain U+0000"));
        }
        let view = IntegrationView::try_from(request.view).unwrap_or_else(|_| {
            violations.push(Violation::new("view", format!("{} is not a view", request.view)));
            IntegrationView::Basic
        });
        let filter = Filter::parse(&request.filter)
            .map_err(|problem| violations.push(Violation::new("filter", problem.to_string())));
        let order = read_order(&request.order_by)
            .map_err(|problem| violations.push(Violation::new("order_by", problem)));
        let (Ok(filter), Ok(order), true) = (filter, order, violations.is_empty()) else {
            return Err(error::invalid(violations));
        };
        let text =
            format!("integrations {:?} {:?} {:?}", request.text_search, request.filter, request.order_by);
        let after = page::place::<Place>(&request.page_token, &text)?;
        if after.as_ref().is_some_and(|place| !place.fits(&order)) {
            return Err(page::foreign());
        }
        let pushed = filter.pushed();
        Ok(Self {
            with_lag: view == IntegrationView::Full && mask.wants(LAG),
            size: size as usize,
            looked_max: LOOKED_MAX,
            listing: Listing {
                text: request.text_search,
                name: pushed.name,
                kind: pushed.kind,
                enabled: pushed.enabled,
                order,
                after,
                limit: if pushed.is_whole { CHUNK.min(size + 1) } else { CHUNK },
            },
            filter,
            mask,
            text,
        })
    }
}

/// Reads `a, b desc`.
fn read_order(text: &str) -> Result<Vec<Sort>, String> {
    let mut order: Vec<Sort> = Vec::new();
    if text.trim().is_empty() {
        return Ok(vec![Sort { key: SortKey::Name, descending: false }]);
    }
    for part in text.split(',') {
        let mut words = part.split_whitespace();
        let key = match words.next().unwrap_or_default() {
            "display_name" => SortKey::Name,
            "type" => SortKey::Kind,
            "create_time" => SortKey::Created,
            "update_time" => SortKey::Updated,
            "revision" => SortKey::Revision,
            other => {
                let known = "display_name, type, create_time, update_time, revision";
                return Err(format!(
                    "can't order by {other:?}; known are {known}, each with an optional desc"
                ));
            }
        };
        let descending = match (words.next(), words.next()) {
            (None, _) | (Some("asc"), None) => false,
            (Some("desc"), None) => true,
            _ => return Err(format!("{:?} is neither a field nor a field and desc", part.trim())),
        };
        if order.iter().any(|sort| sort.key == key) {
            return Err(format!("{:?} stands twice", part.trim()));
        }
        order.push(Sort { key, descending });
    }
    Ok(order)
}

/// Rows of a page, with their status as far as it was needed.
#[derive(Default)]
struct Page {
    rows: Vec<Row>,
    statuses: Vec<Option<IntegrationStatus>>,
    /// Where the next one begins.
    next: Option<Place>,
}

impl Integrations {
    pub(super) async fn list(
        &self,
        request: ListIntegrationsRequest,
    ) -> Result<ListIntegrationsResponse, Status> {
        let question = Question::read(request)?;
        let counted = async {
            if !question.filter.pushed().is_whole {
                return Ok(NOT_COUNTED);
            }
            self.plane.store.count(&question.listing).await.map(|count| count as i64).map_err(Status::from)
        };
        let (page, total_size) = tokio::try_join!(self.page(&question), counted)?;
        let next_page_token =
            page.next.as_ref().map(|place| page::token(place, &question.text)).unwrap_or_default();
        let integrations = self.show(page, &question).await?;
        Ok(ListIntegrationsResponse { integrations, next_page_token, total_size })
    }

    /// Looks at rows in their order until the page is full and it is known whether there is another one.
    async fn page(&self, question: &Question) -> Result<Page, Status> {
        let mut listing = question.listing.clone();
        let mut page = Page::default();
        let (mut looked, mut bytes) = (0, 0);
        loop {
            let rows = self.plane.store.list(&listing).await?;
            let is_last = (rows.len() as u64) < listing.limit;
            let statuses = if question.filter.needs_status() {
                self.statuses(&rows).await?.into_iter().map(Some).collect()
            } else {
                vec![None; rows.len()]
            };
            for (row, status) in rows.into_iter().zip(statuses) {
                looked += 1;
                let place = Place::of(&row, &listing.order);
                if passes(&question.filter, &row, status.as_ref()) {
                    let is_full = page.rows.len() == question.size
                        || (bytes + row.configuration.len() > PAGE_BYTES_MAX && !page.rows.is_empty());
                    if is_full {
                        page.next = listing.after;
                        return Ok(page);
                    }
                    bytes += row.configuration.len();
                    page.rows.push(row);
                    page.statuses.push(status);
                }
                listing.after = Some(place);
            }
            if is_last {
                return Ok(page);
            }
            if looked >= question.looked_max {
                page.next = listing.after;
                return Ok(page);
            }
        }
    }

    async fn show(&self, page: Page, question: &Question) -> Result<Vec<Integration>, Status> {
        let Page { rows, mut statuses, .. } = page;
        let is_missing = statuses.iter().any(Option::is_none) && question.mask.wants("status");
        if is_missing {
            statuses = self.statuses(&rows).await?.into_iter().map(Some).collect();
        }
        if question.with_lag {
            self.add_lags(&rows, &mut statuses).await?;
        }
        let integrations = rows.into_iter().zip(statuses);
        let show = |(row, status): (Row, Option<IntegrationStatus>)| {
            question.mask.apply(self.show_one(row, status, question.mask.wants("configuration_json")))
        };
        Ok(integrations.map(show).collect())
    }

    /// Adds the backlogs, one question to the bus for all; none if it does not answer.
    async fn add_lags(&self, rows: &[Row], statuses: &mut [Option<IntegrationStatus>]) -> Result<(), Status> {
        let ids: Vec<IntegrationId> = rows.iter().map(|row| row.id).collect();
        let lives = self.plane.store.lives(&ids).await?;
        let backlogs = match self.backlogs.of(&self.plane, &lives, LAG_PATIENCE).await {
            Ok(backlogs) => backlogs,
            Err(error) => {
                tracing::debug!(%error, "the backlogs of a page are not known");
                return Ok(());
            }
        };
        let lives: HashMap<_, _> = lives.iter().map(|life| (life.integration, life)).collect();
        let now_ms = tbmq_service::time::now_ms();
        for (row, status) in rows.iter().zip(statuses) {
            if let (Some(status), Some(backlog), Some(life)) =
                (status, backlogs.get(&row.id), lives.get(&row.id))
            {
                status.lag = Some(backlog.lag(&self.plane, row, life, now_ms));
            }
        }
        Ok(())
    }
}

fn passes(filter: &Filter, row: &Row, status: Option<&IntegrationStatus>) -> bool {
    let topic_filters = if filter.needs_topic_filters() {
        // What can't be read any more has none.
        Document::parse(&row.configuration).map(|document| document.topic_filters).unwrap_or_default()
    } else {
        Vec::new()
    };
    let status = status.map(|status| (status.phase(), status.reason.as_str()));
    filter.passes(Subject { row, topic_filters: &topic_filters, status })
}

#[cfg(test)]
mod tests;
