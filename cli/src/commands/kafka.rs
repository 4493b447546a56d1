//! `tbmqctl kafka`.

mod watch;

use std::{cmp::Reverse, num::NonZeroUsize};

use clap::{Args, Subcommand, ValueEnum};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tbmq_proto::control::{
    ConsumerGroup, DeleteConsumerGroupRequest, DeleteOrphanTopicsRequest, GetClusterRequest,
    GetConsumerGroupRequest, GetTopicRequest, GroupLag, ListConsumerGroupsRequest, ListGroupLagsRequest,
    ListTopicsRequest, Topic, TopicOwner, kafka_service_client::KafkaServiceClient,
};
use tonic::transport::Channel;

use crate::{
    client::{Listed, Target, pages},
    confirm::confirm,
    failure::Failure,
    render::{Output, json as view, note, table},
};

use watch::{Block, Watch};

/// Topics that one call names.
const NAMES_MAX: usize = 1_000;

/// Rows of lags that are looked at before the greatest are chosen.
const LAGS_MAX: usize = 100_000;

type Client = KafkaServiceClient<Channel>;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the brokers
    Cluster,
    /// List topics, by name, or show one of them
    #[command(visible_alias = "topic")]
    Topics(TopicsArguments),
    /// List consumer groups, by name, or show one of them with its members and partitions
    #[command(visible_alias = "group")]
    Groups(GroupsArguments),
    /// Show what waits: for each group and topic, and so for each integration; the most first
    #[command(
        visible_alias = "lags",
        after_help = "With --watch it is shown anew at each interval: on a terminal on a screen of its own, else one block after \
                      the other, with -o json one line each.\n\n\
                      Examples:\n  tbmqctl kafka lag --watch\n  tbmqctl kafka lag --search pumps --waiting -o json"
    )]
    Lag(LagArguments),
    /// Delete consumer groups that nobody uses, with what they have committed
    DeleteGroup(DeleteGroupArguments),
    /// Delete topics of integrations that do not exist any more, with what they hold
    DeleteOrphans(DeleteOrphansArguments),
}

#[derive(Debug, Args)]
pub(crate) struct TopicsArguments {
    /// Only this one, with its partitions
    #[arg(value_name = "TOPIC", conflicts_with_all = ["search", "owner", "integration"])]
    topic: Option<String>,
    /// Only those whose name, or whose integration's, contains this text, in upper or lower case
    #[arg(long, value_name = "TEXT")]
    search: Option<String>,
    /// Only those that belong to them
    #[arg(long, value_enum)]
    owner: Option<Owner>,
    /// Only those of this integration, by name or uid
    #[arg(long, value_name = "INTEGRATION")]
    integration: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N", default_value = "100")]
    limit: NonZeroUsize,
    #[command(flatten)]
    watch: Watch,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Owner {
    /// TBMQ, but no integration
    System,
    /// An integration
    Integration,
    /// An integration that does not exist any more
    Orphan,
    /// Somebody else
    Foreign,
    /// Kafka itself
    Kafka,
}

#[derive(Debug, Args)]
pub(crate) struct GroupsArguments {
    /// Only this one, with its members and partitions
    #[arg(value_name = "GROUP", conflicts_with_all = ["search", "state", "system"])]
    group: Option<String>,
    /// Only those whose name contains this text, in upper or lower case
    #[arg(long, value_name = "TEXT")]
    search: Option<String>,
    /// Only those in this state, such as EMPTY or STABLE
    #[arg(long, value_name = "STATE")]
    state: Option<String>,
    /// Only TBMQ's own
    #[arg(long)]
    system: bool,
    /// At most so many
    #[arg(long, value_name = "N", default_value = "100")]
    limit: NonZeroUsize,
    #[command(flatten)]
    watch: Watch,
}

#[derive(Debug, Args)]
pub(crate) struct LagArguments {
    /// Only those whose group, topic or integration contains this text, in upper or lower case
    #[arg(long, value_name = "TEXT")]
    search: Option<String>,
    /// Only those where messages wait
    #[arg(long)]
    waiting: bool,
    /// At most so many
    #[arg(long, value_name = "N", default_value = "100")]
    limit: NonZeroUsize,
    #[command(flatten)]
    watch: Watch,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteGroupArguments {
    /// Names of groups
    #[arg(required = true, value_name = "GROUP")]
    groups: Vec<String>,
    /// Only say whether they could be deleted
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteOrphansArguments {
    /// Names of topics; all orphans if there are none
    #[arg(value_name = "TOPIC")]
    topics: Vec<String>,
    /// Only show what would be deleted
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub(crate) async fn run(command: Command, target: &Target, output: Output) -> Result<(), Failure> {
    let client = target.kafka().await?;
    match command {
        Command::Cluster => cluster(client, target, output).await,
        Command::Topics(arguments) => topics(arguments, client, target, output).await,
        Command::Groups(arguments) => groups(arguments, client, target, output).await,
        Command::Lag(arguments) => lag(arguments, client, target, output).await,
        Command::DeleteGroup(arguments) => delete_groups(arguments, client, target).await,
        Command::DeleteOrphans(arguments) => delete_orphans(arguments, client, target, output).await,
    }
}

async fn cluster(mut client: Client, target: &Target, output: Output) -> Result<(), Failure> {
    let found = client.get_cluster(target.request(GetClusterRequest {})).await?.into_inner();
    output.print_named(
        || table::cluster(&found, output.look),
        || found.brokers.iter().map(|broker| broker.id.to_string()).collect(),
        || view::Cluster::from(&found),
    )
}

async fn topics(
    arguments: TopicsArguments,
    mut client: Client,
    target: &Target,
    output: Output,
) -> Result<(), Failure> {
    let TopicsArguments { topic, search, owner, integration, limit, watch } = arguments;
    if let Some(topic) = topic {
        let look = async || {
            let request = GetTopicRequest { name: topic_name(&topic) };
            let found = client.get_topic(target.request(request)).await?.into_inner();
            Ok(Block {
                head: String::new(),
                table: table::topic(&found, output.look),
                names: vec![found.topic.clone()],
                view: view::Topic::from(&found),
                note: None,
            })
        };
        return watch::run(watch, output, look).await;
    }
    let integration = match integration {
        Some(given) => target.name_of(&mut target.integrations().await?, &given).await?,
        None => String::new(),
    };
    let wanted = ListTopicsRequest {
        text_search: search.unwrap_or_default(),
        owner: owner.map_or(TopicOwner::Unspecified, Owner::wire).into(),
        integration,
        ..ListTopicsRequest::default()
    };
    let look = async || {
        let (mut total, mut bytes) = (0, None);
        let listed = pages(limit.get(), async |page_size, page_token| {
            let request = ListTopicsRequest { page_size, page_token, ..wanted.clone() };
            let page = client.list_topics(target.request(request)).await?.into_inner();
            (total, bytes) = (page.total_size, page.total_size_bytes);
            Ok((page.topics, page.next_page_token))
        })
        .await?;
        Ok(block_of_topics(&listed, &table::topics_summary(total, bytes), output))
    };
    watch::run(watch, output, look).await
}

fn block_of_topics(listed: &Listed<Topic>, summary: &str, output: Output) -> Block<Vec<view::Topic>> {
    let all = &listed.items;
    Block {
        head: summary.to_owned(),
        table: table::topics(all, output.look),
        names: all.iter().map(|one| one.topic.clone()).collect(),
        view: all.iter().map(view::Topic::from).collect(),
        note: listed.more_note(),
    }
}

async fn groups(
    arguments: GroupsArguments,
    mut client: Client,
    target: &Target,
    output: Output,
) -> Result<(), Failure> {
    let GroupsArguments { group, search, state, system, limit, watch } = arguments;
    if let Some(group) = group {
        let look = async || {
            let request = GetConsumerGroupRequest { name: group_name(&group) };
            let found = client.get_consumer_group(target.request(request)).await?.into_inner();
            Ok(Block {
                head: String::new(),
                table: table::group(&found, output.look),
                names: vec![found.group_id.clone()],
                view: view::Group::from(&found),
                note: None,
            })
        };
        return watch::run(watch, output, look).await;
    }
    let wanted = ListConsumerGroupsRequest {
        text_search: search.unwrap_or_default(),
        state: state.unwrap_or_default().to_ascii_uppercase(),
        system_only: system,
        ..ListConsumerGroupsRequest::default()
    };
    let look = async || {
        let mut total = 0;
        let listed: Listed<ConsumerGroup> = pages(limit.get(), async |page_size, page_token| {
            let request = ListConsumerGroupsRequest { page_size, page_token, ..wanted.clone() };
            let page = client.list_consumer_groups(target.request(request)).await?.into_inner();
            total = page.total_size;
            Ok((page.consumer_groups, page.next_page_token))
        })
        .await?;
        let all = &listed.items;
        Ok(Block {
            head: format!("{total} groups"),
            table: table::groups(all, output.look),
            names: all.iter().map(|one| one.group_id.clone()).collect(),
            view: all.iter().map(view::Group::from).collect::<Vec<_>>(),
            note: listed.more_note(),
        })
    };
    watch::run(watch, output, look).await
}

async fn lag(
    arguments: LagArguments,
    mut client: Client,
    target: &Target,
    output: Output,
) -> Result<(), Failure> {
    let LagArguments { search, waiting, limit, watch } = arguments;
    let wanted = ListGroupLagsRequest {
        text_search: search.unwrap_or_default(),
        messages_min: u64::from(waiting),
        ..ListGroupLagsRequest::default()
    };
    let look = async || {
        let (mut messages, mut rows, mut at) = (0, 0, None);
        let mut listed: Listed<GroupLag> = pages(LAGS_MAX, async |page_size, page_token| {
            let request = ListGroupLagsRequest { page_size, page_token, ..wanted.clone() };
            let page = client.list_group_lags(target.request(request)).await?.into_inner();
            (messages, rows, at) = (page.total_lag_messages, page.total_size, page.observe_time);
            Ok((page.group_lags, page.next_page_token))
        })
        .await?;
        listed.items.sort_by_key(|lag| Reverse(lag.lag_messages));
        listed.more |= listed.items.len() > limit.get();
        listed.items.truncate(limit.get());
        let all = &listed.items;
        Ok(Block {
            head: table::lags_summary(messages, rows, at),
            table: table::lags(all, output.look),
            names: all.iter().map(|one| one.topic.clone()).collect(),
            view: all.iter().map(view::GroupLag::from).collect::<Vec<_>>(),
            note: listed.more_note(),
        })
    };
    watch::run(watch, output, look).await
}

async fn delete_groups(
    arguments: DeleteGroupArguments,
    mut client: Client,
    target: &Target,
) -> Result<(), Failure> {
    let DeleteGroupArguments { groups, dry_run, yes } = arguments;
    // Whoever says yes knows that it is possible.
    for group in &groups {
        let request = DeleteConsumerGroupRequest { name: group_name(group), validate_only: true };
        client.delete_consumer_group(target.request(request)).await?;
        if dry_run {
            note(&format!("{group} can be deleted"));
        }
    }
    if dry_run {
        return Ok(());
    }
    let what =
        if groups.len() == 1 { format!("group {}", groups[0]) } else { format!("{} groups", groups.len()) };
    confirm(&format!("Delete {what} with all that was committed?"), yes)?;
    for group in groups {
        let request = DeleteConsumerGroupRequest { name: group_name(&group), validate_only: false };
        client.delete_consumer_group(target.request(request)).await?;
        note(&format!("deleted {group}"));
    }
    Ok(())
}

async fn delete_orphans(
    arguments: DeleteOrphansArguments,
    mut client: Client,
    target: &Target,
    output: Output,
) -> Result<(), Failure> {
    let DeleteOrphansArguments { topics, dry_run, yes } = arguments;
    let names = topics.iter().map(|topic| topic_name(topic)).collect();
    let request = DeleteOrphanTopicsRequest { names, validate_only: true };
    let found = client.delete_orphan_topics(target.request(request)).await?.into_inner().topics;
    if found.is_empty() {
        note("there are no orphans");
    }
    let print = |found: &[Topic]| {
        output.print_named(
            || if found.is_empty() { String::new() } else { table::topics(found, output.look) },
            || found.iter().map(|one| one.topic.clone()).collect(),
            || found.iter().map(view::Topic::from).collect::<Vec<_>>(),
        )
    };
    if dry_run || found.is_empty() {
        return print(&found);
    }
    if !yes {
        for topic in &found {
            note(&topic.topic);
        }
    }
    let question = match found.len() {
        1 => "Delete this topic with all it holds?".to_owned(),
        count => format!("Delete these {count} topics with all they hold?"),
    };
    confirm(&question, yes)?;
    // None that has become one since.
    let names: Vec<String> = found.iter().map(|topic| topic.name.clone()).collect();
    let mut deleted = Vec::with_capacity(names.len());
    for names in names.chunks(NAMES_MAX) {
        let request = DeleteOrphanTopicsRequest { names: names.to_vec(), validate_only: false };
        deleted.extend(client.delete_orphan_topics(target.request(request)).await?.into_inner().topics);
    }
    note(&format!(
        "deleted {}",
        if deleted.len() == 1 { "1 topic".to_owned() } else { format!("{} topics", deleted.len()) }
    ));
    print(&deleted)
}

impl Owner {
    fn wire(self) -> TopicOwner {
        match self {
            Self::System => TopicOwner::System,
            Self::Integration => TopicOwner::Integration,
            Self::Orphan => TopicOwner::Orphan,
            Self::Foreign => TopicOwner::Foreign,
            Self::Kafka => TopicOwner::Kafka,
        }
    }
}

/// The resource name of a topic that is given by it or by its name.
fn topic_name(given: &str) -> String {
    if given.starts_with("topics/") { given.to_owned() } else { format!("topics/{given}") }
}

/// The resource name of a group that is given by it or by its name.
fn group_name(given: &str) -> String {
    if given.starts_with("consumerGroups/") {
        return given.to_owned();
    }
    format!("consumerGroups/{}", utf8_percent_encode(given, NON_ALPHANUMERIC))
}
