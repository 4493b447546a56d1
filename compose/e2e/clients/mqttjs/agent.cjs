// MQTT.js behind the commands of ../README.md.

"use strict";

const fs = require("node:fs");
const readline = require("node:readline");
const mqtt = require("mqtt");

const PATIENCE_MS = 30_000;

/** What `promise` gives, within the time that anything may take. */
function soon(promise, what) {
  const timer = new Promise((_, reject) => {
    setTimeout(() => reject(new Error(`${what}: nothing within ${PATIENCE_MS} ms`)), PATIENCE_MS).unref();
  });
  return Promise.race([promise, timer]);
}

class Client {
  constructor(name, command) {
    const is3 = command.version === 3;
    this.isV5 = command.version === 5;
    this.messages = [];
    this.waiting = [];
    this.mqtt = mqtt.connect(command.url, {
      clientId: name,
      protocolId: is3 ? "MQIsdp" : "MQTT",
      protocolVersion: command.version,
      clean: command.clean,
      reconnectPeriod: 0,
      ...(command.will && { will: { ...command.will, payload: Buffer.from(command.will.payload) } }),
      ...(command.ca && { ca: fs.readFileSync(command.ca) }),
      ...(this.isV5 && { properties: { sessionExpiryInterval: command.expiry ?? 0 } }),
    });
    this.mqtt.on("message", (topic, payload, packet) => {
      const message = this.described(topic, payload, packet);
      const receiver = this.waiting.shift();
      if (receiver) receiver(message);
      else this.messages.push(message);
    });
    this.connected = new Promise((resolve, reject) => {
      this.mqtt.once("connect", (connack) => resolve({ session_present: connack.sessionPresent }));
      this.mqtt.on("error", reject);
      this.mqtt.once("close", () => reject(new Error("the connection was closed")));
    });
    this.closed = new Promise((resolve) => this.mqtt.once("close", resolve));
  }

  described(topic, payload, packet) {
    const message = { topic, payload: payload.toString(), qos: packet.qos, retain: packet.retain };
    if (!this.isV5) return message;
    const given = packet.properties ?? {};
    const user = Object.entries(given.userProperties ?? {});
    message.properties = {
      format: given.payloadFormatIndicator === undefined ? null : Number(given.payloadFormatIndicator),
      expiry: given.messageExpiryInterval ?? null,
      content_type: given.contentType ?? null,
      response_topic: given.responseTopic ?? null,
      correlation: given.correlationData?.toString() ?? "",
      user: user.flatMap(([name, values]) => [values].flat().map((value) => [name, value])),
      identifiers: [given.subscriptionIdentifier ?? []].flat(),
    };
    return message;
  }

  async subscribe({ filter, qos, identifier }) {
    const properties = identifier === undefined ? {} : { properties: { subscriptionIdentifier: identifier } };
    const [granted] = await this.mqtt.subscribeAsync(filter, { qos, ...properties });
    return { granted: granted.qos };
  }

  async publish({ topic, payload, qos, retain, properties: given }) {
    const properties = given && {
      payloadFormatIndicator: given.format === 1,
      messageExpiryInterval: given.expiry,
      contentType: given.content_type,
      responseTopic: given.response_topic,
      correlationData: Buffer.from(given.correlation),
      userProperties: {},
    };
    for (const [name, value] of given?.user ?? []) (properties.userProperties[name] ??= []).push(value);
    await this.mqtt.publishAsync(topic, payload, { qos, retain, ...(properties && { properties }) });
    return {};
  }

  async receive() {
    return this.messages.shift() ?? new Promise((resolve) => this.waiting.push(resolve));
  }

  async end(isClean) {
    if (isClean) await this.mqtt.endAsync();
    else this.mqtt.stream.destroy();
    await this.closed;
    return {};
  }
}

const clients = new Map();

async function answer(command) {
  const name = command.client;
  if (command.do === "connect") {
    clients.set(name, new Client(name, command));
    return clients.get(name).connected;
  }
  const client = clients.get(name);
  switch (command.do) {
    case "subscribe":
      return client.subscribe(command);
    case "publish":
      return client.publish(command);
    case "receive":
      return client.receive();
    default:
      clients.delete(name);
      return client.end(command.do === "disconnect");
  }
}

async function main() {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    let text;
    try {
      const command = JSON.parse(line);
      text = await soon(answer(command), command.do);
    } catch (error) {
      text = { error: String(error) };
    }
    process.stdout.write(`${JSON.stringify(text)}\n`);
  }
  process.exit();
}

main();
