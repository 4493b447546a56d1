//! `tbmqctl integration stats`.

use tbmq_proto::control::GetIntegrationStatsRequest;

use super::One;
use crate::{
    client::Target,
    failure::Failure,
    render::{Output, json as view, table},
};

pub(super) async fn stats(One { integration }: One, target: &Target, output: Output) -> Result<(), Failure> {
    let mut client = target.integrations().await?;
    let name = target.name_of(&mut client, &integration).await?;
    let request = GetIntegrationStatsRequest { name };
    let stats = client.get_integration_stats(target.request(request)).await?.into_inner();
    output.print_named(
        || table::stats(&integration, &stats),
        || vec![stats.name.clone()],
        || view::Stats::from(&stats),
    )
}
