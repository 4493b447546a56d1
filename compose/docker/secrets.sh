#!/usr/bin/env bash
# Makes the secrets of both Compose files, once: what is there stays. Usage: ./secrets.sh [folder]
set -euo pipefail
folder="${1:-$(dirname "$0")/secrets}"
# Containers run as other users than yours; the folder itself is for you alone.
umask 022
mkdir -p "$folder"
chmod 700 "$folder"

random() { openssl rand -hex 24; }
base64url() { openssl base64 -A | tr '+/' '-_' | tr -d '='; }

# Writes its input to a file that is not there yet.
keep() {
    if [ -e "$folder/$1" ]; then cat > /dev/null; else cat > "$folder/$1"; fi
}

random | keep admin-token
random | keep jwt-secret
random | keep postgres-password
random | keep redis-password
random | keep grafana-password
# What the secrets of integrations are encrypted with: without it they are lost.
printf 'k1:%s\n' "$(openssl rand -base64 32)" | keep secrets-keys

# A token of the role NODE, by which data and control planes know each other.
header="$(printf '{"alg":"HS256","typ":"JWT"}' | base64url)"
claims="$(printf '{"sub":"nodes","tbmq_role":"NODE","exp":4102444800}' | base64url)"
key="$(tr -d '\n' < "$folder/jwt-secret" | od -An -v -tx1 | tr -d ' \n')"
signature="$(printf '%s.%s' "$header" "$claims" | openssl dgst -sha256 -mac HMAC -macopt "hexkey:$key" -binary | base64url)"
printf '%s.%s.%s\n' "$header" "$claims" "$signature" | keep node-token

# Configuration files that hold a password.
printf 'database:\n  url: postgres://tbmq:%s@postgres/tbmq\n' "$(cat "$folder/postgres-password")" | keep control-plane.yaml
printf 'redis:\n  password: %s\n' "$(cat "$folder/redis-password")" | keep data-plane.yaml
printf 'appendonly yes\nmaxmemory-policy noeviction\nrequirepass %s\n' "$(cat "$folder/redis-password")" | keep redis.conf
