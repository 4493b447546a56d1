"""Eclipse Paho for Python behind the commands of ../README.md."""

import json
import os
import queue
import socket
import sys
from urllib.parse import urlsplit

import jwt
import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions
from scramp import ScramClient

PATIENCE = 30
CONTINUE, AGAIN = 0x18, 0x19
VERSIONS = {3: mqtt.MQTTv31, 4: mqtt.MQTTv311, 5: mqtt.MQTTv5}


class Scram:
    """One proof of who the client is, by a library for it; the server has to prove itself, too."""

    def __init__(self, command):
        self.method = command["mechanism"]
        self.client = ScramClient([self.method], command["username"], command["password"])

    def first(self, packet):
        properties = Properties(packet)
        properties.AuthenticationMethod = self.method
        properties.AuthenticationData = self.client.get_client_first().encode()
        return properties

    def answer(self, challenge):
        self.client.set_server_first(challenge.AuthenticationData.decode())
        properties = Properties(PacketTypes.AUTH)
        properties.AuthenticationMethod = self.method
        properties.AuthenticationData = self.client.get_client_final().encode()
        return properties

    def end(self, properties):
        if properties.AuthenticationMethod != self.method:
            raise RuntimeError(f"another method: {properties}")
        self.client.set_server_final(properties.AuthenticationData.decode())


class Authenticating(mqtt.Client):
    """Paho, which has no enhanced authentication of its own, with AUTH packets."""

    scram = None

    def _packet_handle(self):
        if self._in_packet["command"] & 0xF0 != PacketTypes.AUTH << 4:
            return super()._packet_handle()
        body = bytes(self._in_packet["packet"])
        properties = Properties(PacketTypes.AUTH)
        properties.unpack(body[1:])
        self.on_auth(body[0], properties)
        return mqtt.MQTT_ERR_SUCCESS

    def send_auth(self, reason, properties):
        body = bytes([reason]) + properties.pack()
        packet = bytearray([PacketTypes.AUTH << 4])
        self._pack_remaining_length(packet, len(body))
        return self._packet_queue(PacketTypes.AUTH << 4, packet + body, 0, 0)


class Client:
    def __init__(self, name, command):
        self.version = command["version"]
        self.is_v5 = self.version == 5
        url = urlsplit(command["url"])
        self.mqtt = Authenticating(
            mqtt.CallbackAPIVersion.VERSION2,
            client_id=name,
            clean_session=None if self.is_v5 else command["clean"],
            protocol=VERSIONS[self.version],
            transport="websockets" if url.scheme.startswith("ws") else "tcp",
            reconnect_on_failure=False,
        )
        if url.scheme.startswith("ws"):
            self.mqtt.ws_set_options(path=url.path or "/mqtt")
        if url.scheme in ("mqtts", "wss"):
            self.mqtt.tls_set(ca_certs=command["ca"])
        if will := command.get("will"):
            self.mqtt.will_set(will["topic"], will["payload"], will["qos"], will["retain"])
        if "username" in command:
            self.mqtt.username_pw_set(command["username"], command.get("password"))
        self.answers, self.messages, self.ends = queue.Queue(), queue.Queue(), queue.Queue()
        self.mqtt.on_connect = lambda _client, _data, *answer: self.answers.put(answer)
        self.mqtt.on_connect_fail = lambda _client, _data: self.answers.put((None, "no connection", None))
        self.mqtt.on_auth = self.authenticating
        self.mqtt.on_subscribe = lambda _client, _data, _mid, reasons, _properties: self.answers.put(reasons)
        self.mqtt.on_message = lambda _client, _data, message: self.messages.put(message)
        self.mqtt.on_disconnect = lambda _client, _data, _flags, reason, _properties: self.ends.put(reason)
        how = {}
        if self.is_v5:
            how["clean_start"] = command["clean"]
            how["properties"] = Properties(PacketTypes.CONNECT)
            how["properties"].SessionExpiryInterval = command.get("expiry", 0)
        if scram := command.get("scram"):
            self.scram = Scram(scram)
            how["properties"] = self.scram.first(PacketTypes.CONNECT)
        self.mqtt.connect(url.hostname, url.port, **how)
        self.mqtt.loop_start()
        flags, reason, properties = self.answers.get(timeout=PATIENCE)
        if reason != 0:
            raise RuntimeError(f"refused: {reason}")
        if scram:
            self.scram.end(properties)
        self.session_present = flags.session_present

    def authenticating(self, reason, properties):
        if reason == CONTINUE:
            self.mqtt.send_auth(CONTINUE, self.scram.answer(properties))
        else:
            self.answers.put((reason, properties))

    def authenticate(self, command):
        self.scram = Scram(command["scram"])
        self.mqtt.send_auth(AGAIN, self.scram.first(PacketTypes.AUTH))
        reason, properties = self.answers.get(timeout=PATIENCE)
        if reason != 0:
            raise RuntimeError(f"refused: {reason}")
        self.scram.end(properties)
        return {}

    def subscribe(self, command):
        if self.is_v5:
            properties = None
            if "identifier" in command:
                properties = Properties(PacketTypes.SUBSCRIBE)
                properties.SubscriptionIdentifier = command["identifier"]
            options = SubscribeOptions(qos=command["qos"])
            self.mqtt.subscribe(command["filter"], options=options, properties=properties)
        else:
            self.mqtt.subscribe(command["filter"], command["qos"])
        [reason] = self.answers.get(timeout=PATIENCE)
        return {"granted": reason.value}

    def publish(self, command):
        properties = None
        if given := command.get("properties"):
            properties = Properties(PacketTypes.PUBLISH)
            properties.PayloadFormatIndicator = given["format"]
            properties.MessageExpiryInterval = given["expiry"]
            properties.ContentType = given["content_type"]
            properties.ResponseTopic = given["response_topic"]
            properties.CorrelationData = given["correlation"].encode()
            for name, value in given["user"]:
                properties.UserProperty = (name, value)
        info = self.mqtt.publish(
            command["topic"], command["payload"], command["qos"], command["retain"], properties
        )
        info.wait_for_publish(PATIENCE)
        if not info.is_published():
            raise RuntimeError("the publish was not acknowledged")
        return {}

    def receive(self):
        message = self.messages.get(timeout=PATIENCE)
        answer = {
            "topic": message.topic,
            "payload": message.payload.decode(),
            "qos": message.qos,
            "retain": bool(message.retain),
        }
        if self.is_v5:
            properties = message.properties
            answer["properties"] = {
                "format": getattr(properties, "PayloadFormatIndicator", None),
                "expiry": getattr(properties, "MessageExpiryInterval", None),
                "content_type": getattr(properties, "ContentType", None),
                "response_topic": getattr(properties, "ResponseTopic", None),
                "correlation": getattr(properties, "CorrelationData", b"").decode(),
                "user": getattr(properties, "UserProperty", []),
                "identifiers": getattr(properties, "SubscriptionIdentifier", []),
            }
        return answer

    def end(self, is_clean):
        if is_clean:
            self.mqtt.disconnect()
        else:
            # Whatever lies between us and the wire does not get to say goodbye.
            wire = socket.socket(fileno=os.dup(self.mqtt.socket().fileno()))
            wire.shutdown(socket.SHUT_RDWR)
            wire.close()
        self.ends.get(timeout=PATIENCE)
        self.mqtt.loop_stop()
        return {}


def answer(clients, command):
    name = command.get("client")
    match command["do"]:
        case "token":
            return {"token": jwt.encode(command["claims"], command["secret"], algorithm=command["algorithm"])}
        case "connect":
            clients[name] = Client(name, command)
            return {"session_present": clients[name].session_present}
        case "authenticate":
            return clients[name].authenticate(command)
        case "subscribe":
            return clients[name].subscribe(command)
        case "publish":
            return clients[name].publish(command)
        case "receive":
            return clients[name].receive()
        case "break":
            return clients.pop(name).end(is_clean=False)
        case "disconnect":
            return clients.pop(name).end(is_clean=True)


def main():
    clients = {}
    for line in sys.stdin:
        try:
            text = answer(clients, json.loads(line))
        except Exception as error:  # It is the test that judges.
            text = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(text), flush=True)


main()
