#!/usr/bin/env bash
# Creates, gets, lists, changes, watches and deletes an integration, and shows what the server says of a mistake.
set -euo pipefail

server=${1:-127.0.0.1:9090}
grpcurl=${GRPCURL:-grpcurl}
id=$(cat /proc/sys/kernel/random/uuid)
name=integrations/$id

# The configuration travels as a text: JSON within JSON.
document='"{\"topicFilters\":[\"sensors/#\"],\"metadata\":{\"site\":\"north\"},\"clientConfiguration\":'
document+='{\"restEndpointUrl\":\"http://127.0.0.1:9/\",\"requestMethod\":\"POST\",\"maxInMemoryBufferSizeInKb\":256}}"'

# Calls a method of the service with a request in JSON; the answer is JSON too.
call() {
    "$grpcurl" -plaintext -format-error -max-time 30 -d "$2" "$server" "tbmq.control.v1.IntegrationService/$1"
}

echo "== created"
created=$(call CreateIntegration '{
    "integration_id": "'"$id"'",
    "integration": {
        "display_name": "grpcurl-example",
        "type": "HTTP",
        "labels": {"example": "grpcurl"},
        "configuration_json": '"$document"'
    }
}')
echo "$created"
revision=$(sed -n 's/^  "revision": "\([0-9]*\)".*/\1/p' <<<"$created")

echo "== got"
call GetIntegration '{"name": "'"$name"'"}'

echo "== listed"
call ListIntegrations '{"filter": "type = \"HTTP\" AND labels.example = \"grpcurl\""}'

echo "== changed"
call UpdateIntegration '{
    "integration": {"name": "'"$name"'", "description": "changed"},
    "update_mask": {"paths": ["description"]}
}'

echo "== watched"
# From a revision on: what has happened since comes first, and one message is enough.
sed '/^}$/q' < <(call WatchIntegrations '{"name": "'"$name"'", "after_revision": '"$revision"'}' 2>/dev/null)

echo "== refused"
call CreateIntegration '{"integration": {"type": "HTTP", "configuration_json": "{\"topicFilters\":[\"a/#/b\"],\"clientConfiguration\":{}}"}}' 2>&1 || true

echo "== deleted"
call DeleteIntegration '{"name": "'"$name"'"}'

echo "== gone"
call GetIntegration '{"name": "'"$name"'"}' 2>&1 || true
