# syntax=docker/dockerfile:1.7
# All programs of TBMQ in one small image without a shell, run as a user without rights.
#   docker build -t tbmq:0.1.0 .
FROM rust:1.95.0-slim-bookworm AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# The Kafka client is C.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bins \
    && mkdir -p /out/bin /out/data \
    && cp target/release/tbmq target/release/tbmq-control-plane target/release/tbmq-data-plane \
        target/release/tbmq-executor target/release/tbmqctl /out/bin/ \
    && strip /out/bin/*

FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="TBMQ" \
      org.opencontainers.image.description="An MQTT broker whose messages flow, durably, into other systems" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /out/bin/ /usr/local/bin/
COPY --from=build --chown=65532:65532 /out/data /var/lib/tbmq
ENV TBMQ_DATA_DIR=/var/lib/tbmq \
    TBMQ_LOG_FORMAT=json
USER 65532:65532
VOLUME /var/lib/tbmq
# MQTT, MQTT over WebSocket, gRPC, admin.
EXPOSE 1883 8084 9090 8083
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=60s --retries=3 CMD ["/usr/local/bin/tbmq", "--probe"]
CMD ["/usr/local/bin/tbmq"]
