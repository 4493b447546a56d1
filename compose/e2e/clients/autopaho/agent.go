// Eclipse Paho for Go, with its autopaho, behind the commands of ../README.md.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"
)

const patience = 30 * time.Second

type command struct {
	Do         string
	Client     string
	URL        string
	CA         string
	Version    int
	Clean      bool
	Expiry     uint32
	Will       *message
	Filter     string
	Identifier *int
	message
}

type message struct {
	Topic      string      `json:"topic"`
	Payload    string      `json:"payload"`
	Qos        byte        `json:"qos"`
	Retain     bool        `json:"retain"`
	Properties *properties `json:"properties,omitempty"`
}

type properties struct {
	Format        *byte       `json:"format"`
	Expiry        *uint32     `json:"expiry"`
	ContentType   string      `json:"content_type"`
	ResponseTopic string      `json:"response_topic"`
	Correlation   string      `json:"correlation"`
	User          [][2]string `json:"user"`
	Identifiers   []int       `json:"identifiers"`
}

type client struct {
	manager  *autopaho.ConnectionManager
	messages chan message
	down     chan struct{}
}

func connect(ctx context.Context, one command) (*client, bool, error) {
	server, err := url.Parse(one.URL)
	if err != nil {
		return nil, false, err
	}
	made := &client{messages: make(chan message, 1000), down: make(chan struct{}, 1)}
	up, failed := make(chan bool, 1), make(chan error, 1)
	config := autopaho.ClientConfig{
		ServerUrls:                    []*url.URL{server},
		KeepAlive:                     60,
		CleanStartOnInitialConnection: one.Clean,
		SessionExpiryInterval:         one.Expiry,
		OnConnectionUp: func(_ *autopaho.ConnectionManager, connack *paho.Connack) {
			up <- connack.SessionPresent
		},
		OnConnectionDown: func() bool {
			made.down <- struct{}{}
			return false
		},
		OnConnectError: func(err error) {
			select {
			case failed <- err:
			default:
			}
		},
		ClientConfig: paho.ClientConfig{
			ClientID: one.Client,
			OnPublishReceived: []func(paho.PublishReceived) (bool, error){
				func(received paho.PublishReceived) (bool, error) {
					made.messages <- described(received.Packet)
					return true, nil
				},
			},
		},
	}
	if one.Will != nil {
		config.WillMessage = &paho.WillMessage{
			Topic: one.Will.Topic, Payload: []byte(one.Will.Payload), QoS: one.Will.Qos, Retain: one.Will.Retain,
		}
	}
	if one.CA != "" {
		authority, err := os.ReadFile(one.CA)
		if err != nil {
			return nil, false, err
		}
		config.TlsCfg = &tls.Config{RootCAs: x509.NewCertPool()}
		config.TlsCfg.RootCAs.AppendCertsFromPEM(authority)
	}
	made.manager, err = autopaho.NewConnection(context.Background(), config)
	if err != nil {
		return nil, false, err
	}
	select {
	case sessionPresent := <-up:
		return made, sessionPresent, made.manager.AwaitConnection(ctx)
	case err := <-failed:
		return nil, false, err
	case <-ctx.Done():
		return nil, false, ctx.Err()
	}
}

func described(publish *paho.Publish) message {
	given := publish.Properties
	found := &properties{
		Format:        given.PayloadFormat,
		Expiry:        given.MessageExpiry,
		ContentType:   given.ContentType,
		ResponseTopic: given.ResponseTopic,
		Correlation:   string(given.CorrelationData),
		User:          [][2]string{},
		Identifiers:   []int{},
	}
	for _, user := range given.User {
		found.User = append(found.User, [2]string{user.Key, user.Value})
	}
	if given.SubscriptionIdentifier != nil {
		found.Identifiers = append(found.Identifiers, *given.SubscriptionIdentifier)
	}
	return message{publish.Topic, string(publish.Payload), publish.QoS, publish.Retain, found}
}

func (one *client) subscribe(ctx context.Context, with command) (any, error) {
	subscribe := &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: with.Filter, QoS: with.Qos}}}
	if with.Identifier != nil {
		subscribe.Properties = &paho.SubscribeProperties{SubscriptionIdentifier: with.Identifier}
	}
	suback, err := one.manager.Subscribe(ctx, subscribe)
	if err != nil {
		return nil, err
	}
	return map[string]any{"granted": suback.Reasons[0]}, nil
}

func (one *client) publish(ctx context.Context, what message) (any, error) {
	publish := &paho.Publish{Topic: what.Topic, Payload: []byte(what.Payload), QoS: what.Qos, Retain: what.Retain}
	if given := what.Properties; given != nil {
		publish.Properties = &paho.PublishProperties{
			PayloadFormat:   given.Format,
			MessageExpiry:   given.Expiry,
			ContentType:     given.ContentType,
			ResponseTopic:   given.ResponseTopic,
			CorrelationData: []byte(given.Correlation),
		}
		for _, user := range given.User {
			publish.Properties.User.Add(user[0], user[1])
		}
	}
	_, err := one.manager.Publish(ctx, publish)
	return map[string]any{}, err
}

func (one *client) receive(ctx context.Context) (any, error) {
	select {
	case received := <-one.messages:
		return received, nil
	case <-ctx.Done():
		return nil, errors.New("no message came")
	}
}

func (one *client) end(ctx context.Context, isClean bool) (any, error) {
	if isClean {
		return map[string]any{}, one.manager.Disconnect(ctx)
	}
	one.manager.TerminateConnectionForTest()
	select {
	case <-one.down:
		return map[string]any{}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func answer(clients map[string]*client, line []byte) (any, error) {
	var asked command
	if err := json.Unmarshal(line, &asked); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if asked.Do == "connect" {
		if asked.Version != 5 {
			return nil, errors.New("autopaho speaks 5.0 only")
		}
		made, sessionPresent, err := connect(ctx, asked)
		clients[asked.Client] = made
		return map[string]any{"session_present": sessionPresent}, err
	}
	one := clients[asked.Client]
	if one == nil {
		return nil, fmt.Errorf("%s is not connected", asked.Client)
	}
	switch asked.Do {
	case "subscribe":
		return one.subscribe(ctx, asked)
	case "publish":
		return one.publish(ctx, asked.message)
	case "receive":
		return one.receive(ctx)
	default:
		delete(clients, asked.Client)
		return one.end(ctx, asked.Do == "disconnect")
	}
}

func main() {
	clients := map[string]*client{}
	lines := bufio.NewReaderSize(os.Stdin, 1<<20)
	answers := json.NewEncoder(os.Stdout)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		text, err := answer(clients, line)
		if err != nil {
			text = map[string]any{"error": err.Error()}
		}
		if err := answers.Encode(text); err != nil {
			return
		}
	}
}
