package imex

import (
	"bufio"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

// Version is what this stand-in reports as its driver version.
var Version = "580.95.05"

// Node states, as `nvidia-imex-ctl -q` prints them.
const (
	Initializing    = "INITIALIZING"
	WaitingForPeers = "WAITING_FOR_PEERS"
	Ready           = "READY"
	ShuttingDown    = "SHUTTING_DOWN"
	Unavailable     = "UNAVAILABLE"
)

// Connection states, as `nvidia-imex-ctl -N -j` prints them.
const (
	Invalid         = "INVALID"
	NeverConnected  = "NEVER_CONNECTED"
	Connected       = "CONNECTED"
	Recovering      = "RECOVERING"
	Disconnected    = "DISCONNECTED"
	VersionMismatch = "VERSION_MISMATCH"
	MapMismatch     = "NODE_MAP_MISMATCH"
)

// Hello is the first line in each direction of a connection between two daemons; Ping the ones after.
type Hello struct {
	Version  string `json:"version"`
	NodeMap  string `json:"nodeMap"`
	Node     int    `json:"node"`
	Instance string `json:"instance"`
	Refused  string `json:"refused,omitempty"`
	Bye      bool   `json:"bye,omitempty"`
}

// Status is the answer of a daemon's command service.
type Status struct {
	Status      string   `json:"status"`
	Version     string   `json:"version"`
	HostName    string   `json:"hostName"`
	Node        int      `json:"node"`
	Connections []string `json:"connections"` // one per entry of the node list
	Addresses   []string `json:"addresses"`   // last address used for that entry
}

// MapKey identifies a node list; daemons with different lists do not talk to each other.
func MapKey(nodes []string) string {
	sum := sha256.Sum256([]byte(strings.Join(nodes, "\n")))
	return hex.EncodeToString(sum[:8])
}

// Lines frames JSON values one per line, with a deadline per value.
type Lines struct {
	conn   net.Conn
	reader *bufio.Reader
}

// NewLines wraps a connection.
func NewLines(conn net.Conn) *Lines { return &Lines{conn, bufio.NewReaderSize(conn, 4096)} }

// Send writes one value within the timeout.
func (l *Lines) Send(value any, timeout time.Duration) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	if err := l.conn.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	_, err = l.conn.Write(append(data, '\n'))
	return err
}

// Receive reads one value within the timeout.
func (l *Lines) Receive(value any, timeout time.Duration) error {
	if err := l.conn.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	line, err := l.reader.ReadBytes('\n')
	if err != nil {
		return err
	}
	return json.Unmarshal(line, value)
}

// Close ends the connection.
func (l *Lines) Close() { l.conn.Close() }

// Credentials are the TLS settings of one daemon: mutual, one CA for each direction.
type Credentials struct{ Server, Client *tls.Config }

// ReadCredentials reads what the configuration names. Nil without encryption.
func ReadCredentials(c *Config) (*Credentials, error) {
	if !c.Encrypted {
		return nil, nil
	}
	if c.AuthMode != "SSL_TLS" {
		return nil, fmt.Errorf("IMEX_AUTH_ENCRYPTION_MODE=%q is not supported, only SSL_TLS", c.AuthMode)
	}
	server, err := keyPair(c, c.ServerCert, c.ServerKey)
	if err != nil {
		return nil, fmt.Errorf("server credentials: %w", err)
	}
	client, err := keyPair(c, c.ClientCert, c.ClientKey)
	if err != nil {
		return nil, fmt.Errorf("client credentials: %w", err)
	}
	clientAuthority, err := pool(c, c.ServerCertAuth)
	if err != nil {
		return nil, err
	}
	serverAuthority, err := pool(c, c.ClientCertAuth)
	if err != nil {
		return nil, err
	}
	return &Credentials{
		Server: &tls.Config{
			Certificates: []tls.Certificate{server}, ClientCAs: clientAuthority,
			ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12,
		},
		Client: &tls.Config{
			Certificates: []tls.Certificate{client}, RootCAs: serverAuthority,
			ServerName: c.TargetOverride, MinVersion: tls.VersionTLS12,
		},
	}, nil
}

func source(c *Config, value string) ([]byte, error) {
	switch c.AuthSource {
	case "FILE":
		return os.ReadFile(value)
	case "ENV_PATH":
		return os.ReadFile(os.Getenv(value))
	case "ENV_VAL":
		return []byte(os.Getenv(value)), nil
	}
	return nil, fmt.Errorf("IMEX_AUTH_SOURCE=%q is not FILE, ENV_PATH or ENV_VAL", c.AuthSource)
}

func keyPair(c *Config, cert, key string) (tls.Certificate, error) {
	certificate, err := source(c, cert)
	if err != nil {
		return tls.Certificate{}, err
	}
	private, err := source(c, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair(certificate, private)
}

func pool(c *Config, authority string) (*x509.CertPool, error) {
	data, err := source(c, authority)
	if err != nil {
		return nil, err
	}
	authorities := x509.NewCertPool()
	if !authorities.AppendCertsFromPEM(data) {
		return nil, errors.New("the certificate authority holds no PEM certificate")
	}
	return authorities, nil
}
