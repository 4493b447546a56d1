//! Who a client certificate belongs to.

use x509_parser::{extensions::GeneralName, prelude::FromDer as _};

use super::{config::ClientRole, role::Role};

/// The names in a certificate that rustls has verified: common names first, then alternative names.
pub(crate) fn names(der: &[u8]) -> Vec<String> {
    let Ok((_, certificate)) = x509_parser::certificate::X509Certificate::from_der(der) else {
        return Vec::new();
    };
    let common = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    let mut names: Vec<String> = common.map(ToOwned::to_owned).collect();
    if let Ok(Some(alternative)) = certificate.subject_alternative_name() {
        for name in &alternative.value.general_names {
            match name {
                GeneralName::DNSName(name) | GeneralName::URI(name) | GeneralName::RFC822Name(name) => {
                    names.push((*name).to_owned());
                }
                _ => {}
            }
        }
    }
    names
}

/// The role of the first rule that fits one of the names.
pub(crate) fn role(rules: &[ClientRole], names: &[String]) -> Option<Role> {
    rules.iter().find(|rule| names.iter().any(|name| rule.fits(name))).map(|rule| rule.role)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    #[test]
    fn the_first_rule_that_fits_a_name_gives_the_role() {
        let mut parameters = CertificateParams::new(["dp1.tbmq".to_owned()]).unwrap();
        parameters.distinguished_name.push(DnType::CommonName, "dp1");
        let certificate = parameters.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let names = names(certificate.der());
        assert_eq!(names, ["dp1", "dp1.tbmq"]);
        let rules = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        assert_eq!(role(&rules(&["x=ADMIN", "*.tbmq=NODE", "*=VIEWER"]), &names), Some(Role::Node));
        assert_eq!(role(&rules(&["dp1=OPERATOR"]), &names), Some(Role::Operator));
        assert_eq!(role(&rules(&["x=ADMIN"]), &names), None);
        assert_eq!(super::names(b"junk"), Vec::<String>::new());
    }
}
