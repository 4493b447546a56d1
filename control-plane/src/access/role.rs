//! Roles, and what a call needs.

use std::{fmt, str::FromStr};

use tbmq_proto::control::AccessRole;

/// What a caller may do. Each of the first four may do all that those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// Sees everything but secrets, tokens and the audit log.
    Viewer,
    /// Also switches, restarts and checks integrations, disconnects clients and drains nodes.
    Operator,
    /// Also creates, changes and deletes.
    Editor,
    /// Also handles tokens and reads the audit log.
    Admin,
    /// A data plane or another control plane: node sessions and forwarded calls, and nothing else.
    Node,
}

/// What a method asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Nothing.
    Open,
    /// This role, or a higher one.
    Role(Role),
}

impl Role {
    pub(crate) const ALL: [Self; 5] = [Self::Viewer, Self::Operator, Self::Editor, Self::Admin, Self::Node];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "VIEWER",
            Self::Operator => "OPERATOR",
            Self::Editor => "EDITOR",
            Self::Admin => "ADMIN",
            Self::Node => "NODE",
        }
    }

    /// Whether this role is enough where `least` is needed. Nodes stand beside the others, not above or below.
    pub(crate) fn reaches(self, least: Self) -> bool {
        if self == Self::Node || least == Self::Node { self == least } else { self >= least }
    }

    pub(crate) fn to_proto(self) -> AccessRole {
        match self {
            Self::Viewer => AccessRole::Viewer,
            Self::Operator => AccessRole::Operator,
            Self::Editor => AccessRole::Editor,
            Self::Admin => AccessRole::Admin,
            Self::Node => AccessRole::Node,
        }
    }

    pub(crate) fn from_proto(role: AccessRole) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.to_proto() == role)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|role| role.as_str().eq_ignore_ascii_case(text.trim()));
        known.ok_or_else(|| UnknownRole(text.to_owned()))
    }
}

/// There is no such role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no role: VIEWER, OPERATOR, EDITOR, ADMIN, NODE")]
pub(crate) struct UnknownRole(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_higher_role_may_do_what_a_lower_one_may_and_nodes_stand_apart() {
        let people = &Role::ALL[..4];
        for (i, held) in people.iter().enumerate() {
            for (j, least) in people.iter().enumerate() {
                assert_eq!(held.reaches(*least), i >= j, "{held} {least}");
            }
            assert!(!held.reaches(Role::Node) && !Role::Node.reaches(*held), "{held}");
        }
        assert!(Role::Node.reaches(Role::Node));
    }

    #[test]
    fn roles_survive_their_names_and_numbers() {
        for role in Role::ALL {
            assert_eq!(role.as_str().to_lowercase().parse(), Ok(role));
            assert_eq!(Role::from_proto(role.to_proto()), Some(role));
        }
        assert!("root".parse::<Role>().is_err());
        assert_eq!(Role::from_proto(AccessRole::Unspecified), None);
    }
}
