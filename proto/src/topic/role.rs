//! What a topic or a group of the catalogue is for: the way back from names.

use super::Catalogue;
use crate::ids::{IntegrationId, Kind, ServiceId};

/// What a topic of the catalogue is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// [`Catalogue::downlink`].
    Downlink(Kind),
    /// [`Catalogue::uplink`].
    Uplink,
    /// [`Catalogue::uplink_notifications`].
    UplinkNotifications(ServiceId),
    /// [`Catalogue::messages`].
    Messages(IntegrationId),
    /// [`Catalogue::dead_letters`].
    DeadLetters(IntegrationId),
    /// [`Catalogue::integration_subscriptions`].
    IntegrationSubscriptions,
    /// [`Catalogue::client_sessions`].
    ClientSessions,
    /// [`Catalogue::client_subscriptions`].
    ClientSubscriptions,
    /// [`Catalogue::retained`].
    Retained,
    /// [`Catalogue::blocked_clients`].
    BlockedClients,
    /// [`Catalogue::credentials`].
    Credentials,
    /// [`Catalogue::auth_settings`].
    AuthSettings,
    /// [`Catalogue::unauthorized_clients`].
    UnauthorizedClients,
    /// [`Catalogue::node_applied`].
    NodeApplied,
    /// [`Catalogue::kinds`].
    Kinds,
    /// [`Catalogue::owners`].
    Owners,
}

impl Role {
    /// What it is for, in a few words.
    pub fn purpose(&self) -> String {
        let text = match self {
            Self::Downlink(kind) => return format!("configuration for executors of {kind}"),
            Self::UplinkNotifications(service) => return format!("replies to control plane {service}"),
            Self::Uplink => "events of executors",
            Self::Messages(_) => "messages of an integration",
            Self::DeadLetters(_) => "dead letters of an integration",
            Self::IntegrationSubscriptions => "topic filters of integrations",
            Self::ClientSessions => "sessions of clients",
            Self::ClientSubscriptions => "topic filters of clients",
            Self::Retained => "retained messages",
            Self::BlockedClients => "clients that may not connect",
            Self::Credentials => "credentials of clients",
            Self::AuthSettings => "how clients prove who they are",
            Self::UnauthorizedClients => "clients that were refused",
            Self::NodeApplied => "what nodes have applied",
            Self::Kinds => "kinds that executors announce",
            Self::Owners => "which executor owns what",
        };
        text.to_owned()
    }

    /// The integration that it is of.
    pub fn integration(&self) -> Option<IntegrationId> {
        match self {
            Self::Messages(id) | Self::DeadLetters(id) => Some(*id),
            _ => None,
        }
    }
}

/// What a group of the catalogue is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupRole {
    /// [`Catalogue::downlink_group`].
    Downlink(Kind),
    /// [`Catalogue::messages_group`].
    Messages,
    /// [`Catalogue::uplink_group`].
    Uplink,
    /// [`Catalogue::unauthorized_group`].
    Unauthorized,
}

impl GroupRole {
    /// What it is for, in a few words.
    pub fn purpose(&self) -> String {
        let text = match self {
            Self::Downlink(kind) => return format!("shares {kind} integrations among executors"),
            Self::Messages => "how far executors have delivered the messages of integrations",
            Self::Uplink => "shares events of executors among control planes",
            Self::Unauthorized => "shares refused clients among control planes",
        };
        text.to_owned()
    }
}

impl Catalogue {
    /// What the topic of this name is for; `None` when it is none of the catalogue's under this prefix.
    pub fn role_of(&self, topic: &str) -> Option<Role> {
        let name = topic.strip_prefix(&self.prefix)?;
        let after = |stem: &str| name.strip_prefix(stem);
        let role = match name {
            "tbmq.ie.uplink" => Role::Uplink,
            "tbmq.integration.subscriptions" => Role::IntegrationSubscriptions,
            "tbmq.client.session" => Role::ClientSessions,
            "tbmq.client.subscriptions" => Role::ClientSubscriptions,
            "tbmq.msg.retained" => Role::Retained,
            "tbmq.client.blocked" => Role::BlockedClients,
            "tbmq.auth.credentials" => Role::Credentials,
            "tbmq.auth.settings" => Role::AuthSettings,
            "tbmq.auth.unauthorized" => Role::UnauthorizedClients,
            "tbmq.node.applied" => Role::NodeApplied,
            "tbmq.ie.kinds" => Role::Kinds,
            "tbmq.ie.owner" => Role::Owners,
            _ => {
                if let Some(kind) = after("tbmq.ie.downlink.") {
                    Role::Downlink(kind.to_ascii_uppercase().parse().ok()?)
                } else if let Some(service) = after("tbmq.ie.uplink.notifications.") {
                    Role::UplinkNotifications(service.parse().ok()?)
                } else if let Some(id) = after("tbmq.msg.ie.") {
                    Role::Messages(id.parse().ok()?)
                } else {
                    Role::DeadLetters(after("tbmq.ie.dlq.")?.parse().ok()?)
                }
            }
        };
        // An id can be written in several ways, and ours is one of them: TBMQ's own message topics have no hyphens.
        (self.topic_of(&role).name == topic).then_some(role)
    }

    /// The topic with this role; of one shard, where there may be several.
    fn topic_of(&self, role: &Role) -> super::Topic {
        match role {
            Role::Downlink(kind) => self.downlink(kind),
            Role::Uplink => self.uplink(),
            Role::UplinkNotifications(service) => self.uplink_notifications(service),
            Role::Messages(id) => self.messages(*id, 1),
            Role::DeadLetters(id) => self.dead_letters(*id),
            Role::IntegrationSubscriptions => self.integration_subscriptions(),
            Role::ClientSessions => self.client_sessions(),
            Role::ClientSubscriptions => self.client_subscriptions(),
            Role::Retained => self.retained(),
            Role::BlockedClients => self.blocked_clients(),
            Role::Credentials => self.credentials(),
            Role::AuthSettings => self.auth_settings(),
            Role::UnauthorizedClients => self.unauthorized_clients(),
            Role::NodeApplied => self.node_applied(),
            Role::Kinds => self.kinds(),
            Role::Owners => self.owners(),
        }
    }

    /// What the group of this name is for; `None` when it is none of the catalogue's under this prefix.
    pub fn group_role_of(&self, group: &str) -> Option<GroupRole> {
        let fixed = [
            (self.messages_group(), GroupRole::Messages),
            (self.uplink_group(), GroupRole::Uplink),
            (self.unauthorized_group(), GroupRole::Unauthorized),
        ];
        if let Some((_, role)) = fixed.into_iter().find(|(name, _)| name == group) {
            return Some(role);
        }
        let kind = group.strip_prefix(&self.prefix)?.strip_suffix("-ie-downlink-consumer-group")?;
        let kind: Kind = kind.to_ascii_uppercase().parse().ok()?;
        (self.downlink_group(&kind) == group).then_some(GroupRole::Downlink(kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "00112233-4455-6677-8899-aabbccddeeff";

    fn all() -> Vec<Role> {
        let (id, kind, service) = (ID.parse().unwrap(), "HTTP".parse().unwrap(), "tbmq-1".parse().unwrap());
        vec![
            Role::Downlink(kind),
            Role::Uplink,
            Role::UplinkNotifications(service),
            Role::Messages(id),
            Role::DeadLetters(id),
            Role::IntegrationSubscriptions,
            Role::ClientSessions,
            Role::ClientSubscriptions,
            Role::Retained,
            Role::BlockedClients,
            Role::Credentials,
            Role::AuthSettings,
            Role::UnauthorizedClients,
            Role::NodeApplied,
            Role::Kinds,
            Role::Owners,
        ]
    }

    #[test]
    fn every_topic_of_the_catalogue_is_known_by_its_name_under_its_own_prefix_only() {
        for prefix in ["", "one."] {
            let (catalogue, other) = (Catalogue::new(prefix), Catalogue::new("two."));
            for role in all() {
                let name = catalogue.topic_of(&role).name;
                assert_eq!(catalogue.role_of(&name).as_ref(), Some(&role), "{name}");
                assert_eq!(other.role_of(&name), None, "{name}");
                assert!(!role.purpose().is_empty());
            }
        }
        let documented =
            include_str!("../topic.rs").lines().filter(|line| line.starts_with("//! | `")).count();
        assert_eq!(documented, all().len(), "rows of the table");
    }

    #[test]
    fn what_others_have_made_is_not_ours() {
        let catalogue = Catalogue::new("");
        for name in [
            "tbmq.msg.ie.00112233445566778899aabbccddeeff",
            "tbmq.msg.ie.00112233-4455-6677-8899-AABBCCDDEEFF",
            "tbmq.msg.ie.{00112233-4455-6677-8899-aabbccddeeff}",
            "tbmq.msg.ie.x",
            "tbmq.msg.all",
            "tbmq.ie.downlink.HTTP",
            "tbmq.ie.downlink.",
            "tbmq.ie.dlq.",
            "two.tbmq.ie.uplink",
            "",
        ] {
            assert_eq!(catalogue.role_of(name), None, "{name}");
        }
    }

    #[test]
    fn groups_are_known_by_their_names() {
        let catalogue = Catalogue::new("p.");
        let kind: Kind = "MQTT".parse().unwrap();
        for (name, role) in [
            (catalogue.messages_group(), GroupRole::Messages),
            (catalogue.uplink_group(), GroupRole::Uplink),
            (catalogue.unauthorized_group(), GroupRole::Unauthorized),
            (catalogue.downlink_group(&kind), GroupRole::Downlink(kind)),
        ] {
            assert_eq!(catalogue.group_role_of(&name).as_ref(), Some(&role), "{name}");
            assert_eq!(Catalogue::new("").group_role_of(&name), None, "{name}");
            assert!(!role.purpose().is_empty());
        }
        assert_eq!(catalogue.group_role_of("p.MQTT-ie-downlink-consumer-group"), None);
        assert_eq!(catalogue.group_role_of("p.ie-msg-consumer-group-00112233"), None);
    }
}
