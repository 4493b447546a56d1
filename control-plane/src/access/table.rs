//! Every method that this server has, and what it asks of its caller.

use super::role::{Need, Role};

/// A method of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Method {
    /// `package.Service/Method`.
    pub(crate) name: &'static str,
    pub(crate) need: Need,
    /// Whether a call of it goes into the audit log also when it was let through.
    pub(crate) changes: bool,
    /// Whether it answers with a stream.
    pub(crate) streams: bool,
}

impl Method {
    const fn streams(self) -> Self {
        Self { streams: true, ..self }
    }
}

const fn open(name: &'static str) -> Method {
    Method { name, need: Need::Open, changes: false, streams: false }
}

const fn reads(name: &'static str, least: Role) -> Method {
    Method { need: Need::Role(least), ..open(name) }
}

const fn changes(name: &'static str, least: Role) -> Method {
    Method { changes: true, ..reads(name, least) }
}

/// All methods; a call of any other is answered UNIMPLEMENTED before anything looks at it.
pub(crate) const METHODS: &[Method] = &[
    changes("tbmq.control.v1.IntegrationService/CreateIntegration", Role::Editor),
    reads("tbmq.control.v1.IntegrationService/GetIntegration", Role::Viewer),
    reads("tbmq.control.v1.IntegrationService/ListIntegrations", Role::Viewer),
    changes("tbmq.control.v1.IntegrationService/UpdateIntegration", Role::Editor),
    changes("tbmq.control.v1.IntegrationService/DeleteIntegration", Role::Editor),
    changes("tbmq.control.v1.IntegrationService/EnableIntegration", Role::Operator),
    changes("tbmq.control.v1.IntegrationService/DisableIntegration", Role::Operator),
    changes("tbmq.control.v1.IntegrationService/RestartIntegration", Role::Operator),
    reads("tbmq.control.v1.IntegrationService/CheckConnection", Role::Operator),
    reads("tbmq.control.v1.IntegrationService/ListKinds", Role::Viewer),
    reads("tbmq.control.v1.IntegrationService/GetIntegrationStats", Role::Viewer),
    reads("tbmq.control.v1.IntegrationService/ExplainTopic", Role::Viewer),
    reads("tbmq.control.v1.IntegrationService/WatchIntegrations", Role::Viewer).streams(),
    reads("tbmq.control.v1.EventService/ListEvents", Role::Viewer),
    reads("tbmq.control.v1.EventService/WatchEvents", Role::Viewer).streams(),
    changes("tbmq.control.v1.EventService/ClearEvents", Role::Editor),
    reads("tbmq.control.v1.NodeService/ListNodes", Role::Viewer),
    changes("tbmq.control.v1.NodeService/DrainNode", Role::Operator),
    reads("tbmq.control.v1.SessionService/ListSessions", Role::Viewer),
    reads("tbmq.control.v1.SessionService/GetSession", Role::Viewer),
    reads("tbmq.control.v1.SessionService/GetSessionCounts", Role::Viewer),
    changes("tbmq.control.v1.SessionService/DisconnectSession", Role::Operator),
    changes("tbmq.control.v1.SessionService/DisconnectSessions", Role::Operator),
    changes("tbmq.control.v1.SessionService/ClearSession", Role::Operator),
    changes("tbmq.control.v1.SessionService/ClearSessions", Role::Operator),
    reads("tbmq.control.v1.SessionService/ListSubscriptions", Role::Viewer),
    reads("tbmq.control.v1.SessionService/SearchSubscriptions", Role::Viewer),
    changes("tbmq.control.v1.SessionService/UpdateSubscriptions", Role::Editor),
    reads("tbmq.control.v1.SessionService/ListSharedSubscriptions", Role::Viewer),
    reads("tbmq.control.v1.RetainedMessageService/ListRetainedMessages", Role::Viewer),
    reads("tbmq.control.v1.RetainedMessageService/GetRetainedMessage", Role::Viewer),
    changes("tbmq.control.v1.RetainedMessageService/DeleteRetainedMessage", Role::Operator),
    changes("tbmq.control.v1.RetainedMessageService/ClearRetainedMessages", Role::Operator),
    changes("tbmq.control.v1.TokenService/CreateToken", Role::Admin),
    reads("tbmq.control.v1.TokenService/ListTokens", Role::Admin),
    changes("tbmq.control.v1.TokenService/RevokeToken", Role::Admin),
    reads("tbmq.control.v1.TokenService/GetCaller", Role::Viewer),
    reads("tbmq.control.v1.AuditService/ListAuditEntries", Role::Admin),
    changes("tbmq.control.v1.CredentialsService/CreateCredentials", Role::Editor),
    reads("tbmq.control.v1.CredentialsService/GetCredentials", Role::Viewer),
    reads("tbmq.control.v1.CredentialsService/ListCredentials", Role::Viewer),
    changes("tbmq.control.v1.CredentialsService/UpdateCredentials", Role::Editor),
    changes("tbmq.control.v1.CredentialsService/DeleteCredentials", Role::Editor),
    changes("tbmq.control.v1.CredentialsService/ChangePassword", Role::Editor),
    changes("tbmq.control.v1.CredentialsService/ImportCredentials", Role::Editor),
    // As clients are disconnected, too.
    changes("tbmq.control.v1.BlockedClientService/CreateBlockedClient", Role::Operator),
    reads("tbmq.control.v1.BlockedClientService/GetBlockedClient", Role::Viewer),
    reads("tbmq.control.v1.BlockedClientService/ListBlockedClients", Role::Viewer),
    changes("tbmq.control.v1.BlockedClientService/UpdateBlockedClient", Role::Operator),
    changes("tbmq.control.v1.BlockedClientService/DeleteBlockedClient", Role::Operator),
    reads("tbmq.control.v1.UnauthorizedClientService/GetUnauthorizedClient", Role::Viewer),
    reads("tbmq.control.v1.UnauthorizedClientService/ListUnauthorizedClients", Role::Viewer),
    changes("tbmq.control.v1.UnauthorizedClientService/DeleteUnauthorizedClient", Role::Operator),
    changes("tbmq.control.v1.UnauthorizedClientService/ClearUnauthorizedClients", Role::Operator),
    reads("tbmq.control.v1.AuthProviderService/GetAuthProvider", Role::Viewer),
    reads("tbmq.control.v1.AuthProviderService/ListAuthProviders", Role::Viewer),
    // Whoever turns off what clients are asked for lets everybody in.
    changes("tbmq.control.v1.AuthProviderService/UpdateAuthProvider", Role::Admin),
    reads("tbmq.control.v1.AuthProviderService/GetAuthSettings", Role::Viewer),
    changes("tbmq.control.v1.AuthProviderService/UpdateAuthSettings", Role::Admin),
    reads("tbmq.control.v1.KafkaService/GetCluster", Role::Viewer),
    reads("tbmq.control.v1.KafkaService/GetTopic", Role::Viewer),
    reads("tbmq.control.v1.KafkaService/ListTopics", Role::Viewer),
    changes("tbmq.control.v1.KafkaService/DeleteOrphanTopics", Role::Admin),
    reads("tbmq.control.v1.KafkaService/GetConsumerGroup", Role::Viewer),
    reads("tbmq.control.v1.KafkaService/ListConsumerGroups", Role::Viewer),
    changes("tbmq.control.v1.KafkaService/DeleteConsumerGroup", Role::Admin),
    reads("tbmq.control.v1.KafkaService/ListGroupLags", Role::Viewer),
    changes("tbmq.node.v1.NodeSessionService/Session", Role::Node).streams(),
    // What is forwarded was audited where it came in.
    reads("tbmq.node.v1.NodeForwardService/Forward", Role::Node),
    // Whoever asks whether a process lives has no credentials.
    open("grpc.health.v1.Health/Check"),
    open("grpc.health.v1.Health/Watch").streams(),
    reads("grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Role::Viewer).streams(),
    reads("grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Role::Viewer).streams(),
];

/// The method of a request's path, such as `/package.Service/Method`.
pub(crate) fn of(path: &str) -> Option<&'static Method> {
    let name = path.strip_prefix('/')?;
    METHODS.iter().find(|method| method.name == name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;

    /// All methods of a descriptor set: full name, and whether it streams.
    fn described(set: &[u8]) -> Vec<(String, bool)> {
        let set = FileDescriptorSet::decode(set).unwrap();
        let mut names = Vec::new();
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    let name = format!("{}.{}/{}", file.package(), service.name(), method.name());
                    names.push((name, method.server_streaming()));
                }
            }
        }
        names
    }

    #[test]
    fn every_method_of_every_service_is_in_the_table_once_and_nothing_else_is() {
        let sets = [
            tbmq_proto::DESCRIPTORS,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ];
        let described: BTreeSet<(String, bool)> = sets.iter().flat_map(|set| described(set)).collect();
        let listed: BTreeSet<(String, bool)> =
            METHODS.iter().map(|method| (method.name.to_owned(), method.streams)).collect();
        assert_eq!(described, listed);
        assert_eq!(listed.len(), METHODS.len(), "a method is listed twice");
    }

    #[test]
    fn methods_that_speak_of_a_change_are_audited() {
        let verbs = [
            "Create",
            "Update",
            "Delete",
            "Enable",
            "Disable",
            "Restart",
            "Clear",
            "Revoke",
            "Disconnect",
            "Change",
            "Import",
        ];
        for method in METHODS {
            let (_, name) = method.name.split_once('/').unwrap();
            if verbs.iter().any(|verb| name.starts_with(verb)) {
                assert!(method.changes && method.need != Need::Open, "{}", method.name);
            }
        }
        assert_eq!(of("/grpc.health.v1.Health/Check").unwrap().need, Need::Open);
        assert_eq!(of("grpc.health.v1.Health/Check"), None);
        assert_eq!(of("/x/y"), None);
    }
}
