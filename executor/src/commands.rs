//! Validation requests and connection checks: bounded workers, and always an answer with a text (spec §3.6, UP-9).

use std::{sync::Arc, time::Duration};

use tbmq_bus::{Error, Outgoing, Writer, spec_of};
use tbmq_integration::{
    entity::Violation,
    wire::{self, RequestType, Stage, Target, ValidationReply, ValidationRequest},
};
use tbmq_proto::ids::{ServiceId, ShardId};
use tbmq_service::trace::{Span, SpanKind, TraceContext, Tracer, bounded};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
};
use tracing::Instrument as _;

use crate::{
    executor::Shared,
    runner::{listed, metadata, read},
    sink::SinkContext,
};

/// Where requests are put. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Commands {
    queue: mpsc::Sender<Asked>,
    refused: mpsc::Sender<Asked>,
}

/// A request, and its span if it is traced, which ends with the answer.
#[derive(Debug)]
struct Asked {
    request: ValidationRequest,
    span: Option<Span>,
}

impl Commands {
    /// The task is to be run by the caller.
    pub(crate) fn new(
        shared: Arc<Shared>,
        writer: Arc<dyn Writer>,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (queue, queued) = mpsc::channel(shared.config.integrations.manage.command_queue.get());
        let (refused, refusals) = mpsc::channel(64);
        (Self { queue, refused }, work(shared, writer, queued, refusals))
    }

    /// Takes a request; does not wait. One too many is answered with an error.
    pub(crate) fn put(&self, shared: &Shared, request: ValidationRequest, parent: Option<&TraceContext>) {
        if is_expired(&request) {
            shared.metrics.commands_expired.inc();
            return;
        }
        let span = parent.and_then(|parent| begin(&shared.tracer, &request, parent));
        if let Err(error) = self.queue.try_send(Asked { request, span }) {
            shared.metrics.commands_refused.inc();
            // Even more than that: silence, and the control plane asks another executor.
            self.refused.try_send(error.into_inner()).ok();
        }
    }
}

/// The span of a request, from its arrival to its answer.
fn begin(tracer: &Tracer, request: &ValidationRequest, parent: &TraceContext) -> Option<Span> {
    let mut span = tracer.follow("validate", SpanKind::Consumer, parent)?;
    span.set("messaging.system", "kafka");
    span.set("messaging.operation.name", "validate");
    span.set("messaging.operation.type", "process");
    span.set("tbmq.integration_id", request.integration.to_string());
    span.set("tbmq.integration_kind", request.kind.as_str().to_owned());
    span.set("tbmq.validation.id", request.id.to_string());
    Some(span)
}

#[derive(Debug, Default)]
struct Verdict {
    error: Option<String>,
    violations: Vec<Violation>,
    stages: Vec<Stage>,
}

impl Verdict {
    fn refused(text: impl Into<String>) -> Self {
        Self { error: Some(text.into()), ..Self::default() }
    }
}

async fn work(
    shared: Arc<Shared>,
    writer: Arc<dyn Writer>,
    mut queued: mpsc::Receiver<Asked>,
    mut refusals: mpsc::Receiver<Asked>,
) {
    let slots = Arc::new(Semaphore::new(shared.config.integrations.manage.command_threads_count.get()));
    let mut workers = JoinSet::new();
    loop {
        tokio::select! {
            Some(result) = workers.join_next(), if !workers.is_empty() => {
                if let Err(error) = result {
                    tracing::error!(%error, "a command's worker ended");
                }
            }
            Some(asked) = refusals.recv() => refuse(&shared, &*writer, asked).await,
            slot = slots.clone().acquire_owned() => {
                let Ok(slot) = slot else { return };
                let asked = tokio::select! {
                    asked = queued.recv() => asked,
                    Some(asked) = refusals.recv() => {
                        refuse(&shared, &*writer, asked).await;
                        continue;
                    }
                };
                let Some(asked) = asked else { return };
                let (shared, writer) = (shared.clone(), writer.clone());
                let logged = asked.span.as_ref().map_or_else(tracing::Span::none, |span| span.context().log_span());
                workers.spawn(async move {
                    answer(&shared, &*writer, asked).await;
                    drop(slot);
                }.instrument(logged));
            }
        }
    }
}

async fn refuse(shared: &Shared, writer: &dyn Writer, Asked { request, span }: Asked) {
    let verdict = Verdict::refused("the executor has too many validations waiting; try again");
    reply(shared, writer, &request, verdict, span).await;
}

async fn answer(shared: &Arc<Shared>, writer: &dyn Writer, Asked { request, span }: Asked) {
    // Checked on receipt as well; it may have waited.
    if is_expired(&request) {
        shared.metrics.commands_expired.inc();
        return;
    }
    let judging = tokio::spawn({
        let (shared, request) = (shared.clone(), request.clone());
        async move { judge(&shared, &request).await }.in_current_span()
    });
    // A kind that panics still gets an answer out.
    let verdict = judging.await.unwrap_or_else(|error| {
        tracing::error!(%error, kind = %request.kind, "a check ended by itself");
        Verdict::refused("the check failed inside the executor; its log says why")
    });
    reply(shared, writer, &request, verdict, span).await;
}

async fn judge(shared: &Shared, request: &ValidationRequest) -> Verdict {
    let target = Target {
        name: request.name.as_str().into(),
        enabled: request.enabled,
        configuration: request.configuration.as_str().into(),
        sealed: request.sealed.clone(),
    };
    let target = match shared.open(request.integration, &target) {
        Ok(target) => target,
        Err(text) => return Verdict::refused(text),
    };
    let redactor = shared.redactor(&request.kind, &target.configuration);
    let Verdict { error, mut violations, mut stages } = judge_opened(shared, request, target).await;
    redactor.clean_all(&mut violations);
    for stage in &mut stages {
        stage.text = redactor.clean(std::mem::take(&mut stage.text));
    }
    Verdict { error: error.map(|text| redactor.clean(text)), violations, stages }
}

/// As [`judge`], with the whole configuration; what it says may hold secrets.
async fn judge_opened(shared: &Shared, request: &ValidationRequest, target: Target) -> Verdict {
    let kind = match shared.kind(&request.kind) {
        Ok(kind) => kind,
        Err(text) => return Verdict::refused(text),
    };
    let document = match read(&**kind, &target.configuration) {
        Ok(document) => document,
        Err(violations) => {
            return Verdict { error: Some(listed(&violations)), violations, stages: Vec::new() };
        }
    };
    if request.request_type == RequestType::Validate {
        return Verdict::default();
    }
    let context = SinkContext {
        shard: ShardId::first(request.integration),
        topic: shared.catalogue.messages(request.integration, 1).name.into(),
        target,
        metadata: Arc::new(metadata(&request.name, &document)),
        executor_id: shared.executor_id.clone(),
        window: 1,
    };
    let most = Duration::from_secs(shared.config.integrations.init.connection_check_api_request_timeout_sec);
    let deadline = match request.deadline_ms {
        0 | i64::MIN..0 => most,
        at => Duration::from_millis((at - tbmq_service::time::now_ms()).max(0) as u64).min(most),
    };
    let probe = kind.probe(&document.client_configuration, &context, deadline);
    // The kind keeps the deadline itself, and knows better how far it came.
    match tokio::time::timeout(deadline + Duration::from_millis(500), probe).await {
        Ok(report) => {
            let error =
                report.error.map(|text| if text.is_empty() { "the check failed".to_owned() } else { text });
            Verdict { error, violations: Vec::new(), stages: report.stages }
        }
        Err(_) => Verdict::refused(format!("the check took longer than {} ms", deadline.as_millis())),
    }
}

async fn reply(
    shared: &Shared,
    writer: &dyn Writer,
    request: &ValidationRequest,
    verdict: Verdict,
    mut span: Option<Span>,
) {
    if let (Some(span), Some(error)) = (&mut span, &verdict.error) {
        span.fail("refused", bounded(error).to_owned());
    }
    let Ok(control_plane) = request.reply_to.parse::<ServiceId>() else {
        shared.metrics.bad_record("downlink");
        tracing::warn!(request = %request.id, reply_to = request.reply_to, "a request names no control plane");
        return;
    };
    let reply = ValidationReply {
        id: request.id,
        error: verdict.error,
        violations: verdict.violations,
        stages: verdict.stages,
        executor: shared.identity.service_id.clone(),
    };
    let topic = shared.catalogue.uplink_notifications(&control_plane);
    let handle = writer.topic(&topic.name);
    let (key, value) = (request.id.to_string(), wire::encode_reply(&reply));
    let record =
        Outgoing { partition: None, key: Some(key.as_bytes()), value: Some(&value[..]), headers: &[] };
    let mut result = tbmq_bus::write(writer, &handle, record).await;
    if let Err(Error::UnknownTopic(_)) = result {
        let spec = spec_of(&topic, shared.replication_factor);
        result = match shared.admin.create_topic(&spec).await {
            Ok(_) => tbmq_bus::write(writer, &handle, record).await,
            Err(error) => Err(error),
        };
    }
    if let Err(error) = result {
        tracing::warn!(request = %request.id, %control_plane, %error, "can't reply");
    }
}

fn is_expired(request: &ValidationRequest) -> bool {
    request.deadline_ms > 0 && request.deadline_ms <= tbmq_service::time::now_ms()
}
