//! Rows as sea-orm entities; nothing outside `store` sees them.

macro_rules! entity {
    ($(#[$doc:meta])* $name:ident, $table:literal { $($(#[$attribute:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[allow(unreachable_pub, reason = "the derive wants public rows in a private module")]
        pub(super) mod $name {
            use sea_orm::entity::prelude::*;

            #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
            #[sea_orm(table_name = $table)]
            pub struct Model { $($(#[$attribute])* pub $field: $type,)* }

            #[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
            pub enum Relation {}

            impl ActiveModelBehavior for ActiveModel {}
        }
    };
}

entity!(access_key, "access_key" {
    #[sea_orm(primary_key, auto_increment = false)] name: String,
    secret: String,
});

entity!(api_token, "api_token" {
    #[sea_orm(primary_key, auto_increment = false)] id: Uuid,
    display_name: String,
    role: String,
    hash: String,
    created_ms: i64,
    expires_ms: Option<i64>,
    last_used_ms: Option<i64>,
});

entity!(audit_entry, "audit_entry" {
    #[sea_orm(primary_key, auto_increment = false)] id: Uuid,
    time_ms: i64,
    principal: String,
    role: String,
    peer: String,
    method: String,
    resource: String,
    etag_before: String,
    etag_after: String,
    result: String,
    error: String,
    service_id: String,
});

entity!(counter, "counter" {
    #[sea_orm(primary_key, auto_increment = false)] name: String,
    value: i64,
});

entity!(integration, "integration" {
    #[sea_orm(primary_key, auto_increment = false)] id: Uuid,
    name: String,
    kind: String,
    enabled: bool,
    configuration: String,
    sealed: Option<String>,
    sealed_key: Option<String>,
    labels: String,
    description: String,
    revision: i64,
    cause: String,
    created_ms: i64,
    updated_ms: i64,
    disconnected_ms: Option<i64>,
});

entity!(topic_life, "topic_life" {
    #[sea_orm(primary_key, auto_increment = false)] integration_id: Uuid,
    kind: String,
    goal: String,
    stage: String,
    position: i64,
    deadline_ms: i64,
    generation: i64,
    revision: i64,
    version: i64,
    shards: i32,
});

entity!(outbox, "outbox" {
    #[sea_orm(primary_key, auto_increment = false)] integration_id: Uuid,
    revision: i64,
    created_ms: i64,
});

entity!(projection, "projection" {
    #[sea_orm(primary_key, auto_increment = false)] integration_id: Uuid,
    revision: i64,
    position: i64,
    time_ms: i64,
});

entity!(integration_status, "integration_status" {
    #[sea_orm(primary_key, auto_increment = false)] integration_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)] shard: i32,
    event: String,
    success: bool,
    error: String,
    service_id: String,
    revision: i64,
    epoch: i64,
    incarnation: String,
    seq: i64,
    time_ms: i64,
});

entity!(event, "event_log" {
    #[sea_orm(primary_key, auto_increment = false)] event_id: Uuid,
    integration_id: Uuid,
    event_type: i32,
    #[sea_orm(primary_key, auto_increment = false)] time_ms: i64,
    service_id: String,
    shard: i32,
    revision: i64,
    epoch: i64,
    incarnation: String,
    seq: i64,
    lifecycle: Option<String>,
    success: Option<bool>,
    method: Option<String>,
    error: Option<String>,
    messages_processed: Option<i64>,
    errors: Option<i64>,
    sequence: i64,
});

entity!(integration_change, "integration_change" {
    #[sea_orm(primary_key, auto_increment = false)] seq: i64,
    integration_id: Uuid,
    kind: i16,
    time_ms: i64,
});

entity!(kind, "kind" {
    #[sea_orm(primary_key, auto_increment = false)] name: String,
    json_schema: String,
    schema_hash: String,
    announced_ms: i64,
});

entity!(lease, "lease" {
    #[sea_orm(primary_key, auto_increment = false)] name: String,
    holder: String,
    fencing: i64,
    beat: i64,
});

entity!(node_session, "node_session" {
    #[sea_orm(primary_key, auto_increment = false)] service_id: String,
    incarnation: String,
    replica: String,
    version: String,
    addresses: String,
    capabilities: String,
    connected_ms: i64,
    seen_ms: i64,
    replica_incarnation: String,
    replica_address: String,
    connections: i64,
    draining: bool,
});

entity!(request, "request" {
    #[sea_orm(primary_key, auto_increment = false)] method: String,
    #[sea_orm(primary_key, auto_increment = false)] request_id: String,
    fingerprint: String,
    integration_id: Uuid,
    created_ms: i64,
});

entity!(credentials, "mqtt_client_credentials" {
    #[sea_orm(primary_key, auto_increment = false)] id: Uuid,
    name: String,
    client_type: String,
    credentials_type: String,
    credentials_id: String,
    credentials_digest: String,
    credentials_value: String,
    client_id: Option<String>,
    user_name: Option<String>,
    common_name: Option<String>,
    revision: i64,
    created_ms: i64,
    updated_ms: i64,
});

entity!(auth_provider, "mqtt_auth_provider" {
    #[sea_orm(primary_key, auto_increment = false)] r#type: String,
    enabled: bool,
    configuration: String,
    sealed: Option<String>,
    sealed_key: Option<String>,
    revision: i64,
    updated_ms: i64,
});

entity!(auth_setting, "auth_setting" {
    #[sea_orm(primary_key, auto_increment = false)] name: String,
    value: String,
    revision: i64,
    updated_ms: i64,
});

entity!(blocked_client, "blocked_client" {
    #[sea_orm(primary_key, auto_increment = false)] digest: String,
    record_key: String,
    r#type: String,
    value: String,
    regex_match_target: Option<String>,
    expires_ms: i64,
    description: String,
    revision: i64,
    created_ms: i64,
});

entity!(unauthorized_client, "unauthorized_client" {
    #[sea_orm(primary_key, auto_increment = false)] digest: String,
    client_id: String,
    address: String,
    user_name: String,
    password_provided: bool,
    tls_used: bool,
    reason: String,
    time_ms: i64,
    count: i64,
});

entity!(auth_outbox, "auth_outbox" {
    #[sea_orm(primary_key, auto_increment = false)] topic: i16,
    #[sea_orm(primary_key, auto_increment = false)] item: String,
    record_key: String,
    revision: i64,
    created_ms: i64,
});

entity!(auth_projection, "auth_projection" {
    #[sea_orm(primary_key, auto_increment = false)] topic: i16,
    #[sea_orm(primary_key, auto_increment = false)] item: String,
    revision: i64,
    partition: i32,
    position: i64,
});
