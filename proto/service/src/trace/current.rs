//! The place in a trace of what a task is doing, for those who pass it on far from where it came in.

use std::future::Future;

use tracing::Instrument as _;

use super::TraceContext;

tokio::task_local! {
    static CURRENT: TraceContext;
}

/// The place of what this task is doing, if it is traced.
pub fn current() -> Option<TraceContext> {
    CURRENT.try_with(Clone::clone).ok()
}

/// Does something at this place: it is [`current`] there, and log lines carry `trace_id` and `span_id`.
pub async fn within<F: Future>(context: TraceContext, doing: F) -> F::Output {
    let logged = context.log_span();
    CURRENT.scope(context, doing).instrument(logged).await
}
