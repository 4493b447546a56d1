//! Settings of listeners: TBMQ's names and defaults where TBMQ has them (broker spec §1.1–1.3).

use std::{
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU32,
    path::PathBuf,
    time::Duration,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tbmq_service::config::Secret;

/// Where clients connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ListenersConfig {
    /// MQTT over TCP.
    pub tcp: ListenerConfig,
    /// MQTT over TLS.
    pub ssl: ListenerConfig,
    /// MQTT over WebSocket.
    pub ws: ListenerConfig,
    /// MQTT over secure WebSocket.
    pub wss: ListenerConfig,
    /// Further listeners, each with the keys of `listener.tcp`: what has `tls` is secured, what has `web-socket` speaks
    /// WebSocket.
    pub more: Vec<ListenerConfig>,
    /// Whether connections begin with a header of the PROXY protocol (1 or 2), before TLS, where a listener does not say so
    /// itself. A connection whose header names no source address is closed.
    pub proxy_protocol_enabled: bool,
    /// Networks (`10.0.0.0/8`) or addresses of proxies that are believed when they announce a client's address; none: all
    /// are. On a listener with the PROXY protocol a connection from elsewhere is closed; forwarded headers from elsewhere
    /// are of no meaning.
    pub trusted_proxies: Vec<String>,
    /// The system's receive buffer of each connection, in KB; 0: as the system likes.
    pub so_receive_buffer: u32,
    /// How often files of certificates are looked at; a change counts without a restart, and bad new ones are warned about and
    /// change nothing.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub tls_reload_interval: Duration,
}

impl Default for ListenersConfig {
    fn default() -> Self {
        let of = |enabled, bind_port, tls, web_socket| ListenerConfig {
            enabled,
            bind_port,
            tls,
            web_socket,
            ..ListenerConfig::default()
        };
        let wss = TlsConfig {
            pem_cert: "ws_mqttserver.pem".into(),
            pem_key: "ws_mqttserver_key.pem".into(),
            ..TlsConfig::default()
        };
        Self {
            tcp: of(true, 1883, None, None),
            ssl: of(false, 8883, Some(TlsConfig::default()), None),
            ws: of(true, 8084, None, Some(WebSocketConfig::default())),
            wss: of(false, 8085, Some(wss), Some(WebSocketConfig::default())),
            more: Vec::new(),
            proxy_protocol_enabled: false,
            trusted_proxies: Vec::new(),
            so_receive_buffer: 0,
            tls_reload_interval: Duration::from_secs(10),
        }
    }
}

impl ListenersConfig {
    /// Those that are enabled, each with its path in the tree.
    pub(crate) fn enabled(&self) -> Vec<(String, &ListenerConfig)> {
        let named = [("tcp", &self.tcp), ("ssl", &self.ssl), ("ws", &self.ws), ("wss", &self.wss)]
            .map(|(name, config)| (format!("listener.{name}"), config));
        let more =
            self.more.iter().enumerate().map(|(index, config)| (format!("listener.more[{index}]"), config));
        named.into_iter().chain(more).filter(|(_, config)| config.enabled).collect()
    }
}

/// One listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ListenerConfig {
    /// Whether to listen at all.
    pub enabled: bool,
    /// Address to bind.
    pub bind_address: IpAddr,
    /// Port to bind; 0 picks a free one. Two data planes on one machine need different ones.
    pub bind_port: u16,
    /// What TBMQ calls the network's settings.
    pub netty: NettyConfig,
    /// Whether connections begin with a header of the PROXY protocol; absent: as for all listeners.
    pub proxy_protocol_enabled: Option<bool>,
    /// Connections at a time, beside the node's limit; more are closed at once. 0: no limit of its own.
    pub connections_max: u32,
    /// Connections taken in a second; more wait in the system's queue. 0: no limit.
    pub accept_rate_max: u32,
    /// TLS; absent: none. Its keys are those of `listener.ssl.tls`.
    pub tls: Option<TlsConfig>,
    /// WebSocket, at the path `/mqtt`; absent: none. Its keys are those of `listener.ws.web-socket`.
    pub web_socket: Option<WebSocketConfig>,
}

impl Default for ListenerConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            bind_address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            bind_port: 1883,
            netty: NettyConfig::default(),
            proxy_protocol_enabled: None,
            connections_max: 0,
            accept_rate_max: 0,
            tls: None,
            web_socket: None,
        }
    }
}

impl ListenerConfig {
    /// Bytes of a whole packet: TBMQ's limit counts without the fixed header, which has at most 5.
    pub(crate) fn packet_bytes(&self) -> u32 {
        self.netty.max_payload_size.get().saturating_add(5)
    }
}

/// A listener's network settings, under TBMQ's names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct NettyConfig {
    /// Bytes that a packet may have after its fixed header; announced to 5.0 clients as Maximum Packet Size.
    /// A WebSocket frame may have as many, and at least 64 KiB.
    pub max_payload_size: NonZeroU32,
    /// TCP keep alive of the system.
    pub so_keep_alive: bool,
}

impl Default for NettyConfig {
    fn default() -> Self {
        Self { max_payload_size: NonZeroU32::new(65_536).expect("not 0"), so_keep_alive: true }
    }
}

/// TLS of a listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct TlsConfig {
    /// The lowest version that is spoken.
    pub protocol: TlsProtocol,
    /// Cipher suites by their names at IANA; none: all that there are.
    pub enabled_cipher_suites: Vec<String>,
    /// How certificate and key are given; key stores of Java are not read.
    pub credentials_type: CredentialsType,
    /// File with the certificate chain, in PEM.
    pub pem_cert: PathBuf,
    /// File with its private key, in PEM.
    pub pem_key: PathBuf,
    /// Password of the private key, if that is encrypted (PKCS#8).
    pub pem_key_password: Secret,
    /// File with the authorities that client certificates must be of, in PEM; absent: no client is asked for one.
    pub client_ca: Option<PathBuf>,
    /// Whether clients show a certificate.
    pub client_auth: ClientAuth,
    /// Files with lists of revoked client certificates, in PEM. If there are any, every authority on a client's path must
    /// have one. One of which the next is overdue counts, and is warned about
    /// (`tbmq_mqtt_tls_revocation_lists_overdue`).
    pub client_crl: Vec<PathBuf>,
    /// Whether client certificates count that are not valid yet, or not any more. There must have been a time when the whole
    /// path was valid.
    pub skip_validity_check_for_client_cert: bool,
    /// Further certificates (`pem-cert`, `pem-key`, `pem-key-password`), each for the DNS names in it: a client says which
    /// host it means.
    pub sni: Vec<CertificateConfig>,
}

impl Default for TlsConfig {
    fn default() -> Self {
        Self {
            protocol: TlsProtocol::default(),
            enabled_cipher_suites: Vec::new(),
            credentials_type: CredentialsType::Pem,
            pem_cert: "mqttserver.pem".into(),
            pem_key: "mqttserver_key.pem".into(),
            pem_key_password: Secret::default(),
            client_ca: None,
            client_auth: ClientAuth::Want,
            client_crl: Vec::new(),
            skip_validity_check_for_client_cert: false,
            sni: Vec::new(),
        }
    }
}

/// A certificate for the hosts that it names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CertificateConfig {
    /// File with the certificate chain, in PEM.
    pub pem_cert: PathBuf,
    /// File with its private key, in PEM.
    pub pem_key: PathBuf,
    /// Password of the private key, if that is encrypted (PKCS#8).
    #[serde(default)]
    pub pem_key_password: Secret,
}

/// The lowest version of TLS that is spoken. Nothing below 1.2 is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TlsProtocol {
    /// 1.2 and 1.3, as with TBMQ.
    #[default]
    #[serde(rename = "TLSv1.2", alias = "TLS")]
    V12,
    /// 1.3 alone.
    #[serde(rename = "TLSv1.3")]
    V13,
}

/// How certificate and key are given. Java's key stores are not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CredentialsType {
    /// As files in PEM.
    #[serde(rename = "PEM")]
    Pem,
}

/// Whether clients show a certificate. Without authorities they are not asked for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ClientAuth {
    /// They are not asked for one.
    None,
    /// They may have none; one that they show must be good.
    Want,
    /// A connection without one is refused.
    Require,
}

/// WebSocket of a listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct WebSocketConfig {
    /// Sub-protocols that are agreed to; `mqtt` first if a client offers it.
    pub sub_protocols: Vec<String>,
    /// Whether a client's address is the first of `X-Forwarded-For`, else `X-Real-IP`; of no meaning with the PROXY
    /// protocol.
    pub forward_headers_enabled: bool,
}

impl Default for WebSocketConfig {
    fn default() -> Self {
        Self {
            sub_protocols: ["mqttv3.1", "mqtt", "mqttv5"].map(ToOwned::to_owned).to_vec(),
            forward_headers_enabled: false,
        }
    }
}
