// Package imex holds what the simulated nvidia-imex and nvidia-imex-ctl share: the configuration format of the real
// programs, name resolution and the wire format between them.
package imex

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Config is an nvidia-imex configuration file; keys and defaults as in NVIDIA's config.cfg.
type Config struct {
	NodesFile      string
	BindIP         string
	ServerPort     int
	WaitForQuorum  string // NONE, RECOVERY or FULL
	GraceSeconds   int    // -1: wait for ever before a lost peer counts as disconnected
	CmdEnabled     bool
	CmdBindIP      string
	CmdPort        int
	CmdUnixPath    string
	Encrypted      bool
	AuthMode       string
	AuthSource     string
	ServerKey      string
	ServerCert     string
	ServerCertAuth string
	ClientKey      string
	ClientCert     string
	ClientCertAuth string
	TargetOverride string
	raw            map[string]string
}

func readLines(path string) ([]string, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var lines []string
	scanner := bufio.NewScanner(file)
	for scanner.Scan() {
		line := strings.TrimSpace(scanner.Text())
		if line != "" && !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	return lines, scanner.Err()
}

// ReadConfig parses KEY=value lines; unknown keys are kept and ignored, as the real program does.
func ReadConfig(path string) (*Config, error) {
	lines, err := readLines(path)
	if err != nil {
		return nil, err
	}
	config := (&Config{raw: map[string]string{}}).withLines(lines)
	return config, config.fill()
}

func (c *Config) withLines(lines []string) *Config {
	for _, line := range lines {
		key, value, _ := strings.Cut(line, "=")
		c.raw[strings.TrimSpace(key)] = strings.TrimSpace(value)
	}
	return c
}

func (c *Config) text(key, fallback string) string {
	if value := c.raw[key]; value != "" {
		return value
	}
	return fallback
}

func (c *Config) number(key string, fallback, low, high int) (int, error) {
	value := c.raw[key]
	if value == "" {
		return fallback, nil
	}
	number, err := strconv.Atoi(value)
	if err != nil || number < low || number > high {
		return 0, fmt.Errorf("%s=%q is not a number from %d to %d", key, value, low, high)
	}
	return number, nil
}

func (c *Config) fill() error {
	var err error
	c.NodesFile = c.text("IMEX_NODE_CONFIG_FILE", "/etc/nvidia-imex/nodes_config.cfg")
	c.BindIP = c.text("BIND_INTERFACE_IP", "")
	if c.ServerPort, err = c.number("SERVER_PORT", 50000, 0, 65535); err != nil {
		return err
	}
	if c.CmdPort, err = c.number("IMEX_CMD_PORT", 0, 0, 65535); err != nil {
		return err
	}
	if c.GraceSeconds, err = c.number("IMEX_NODE_DISCONNECTED_GRACE_TIME", -1, -1, 1<<30); err != nil {
		return err
	}
	c.CmdEnabled = c.text("IMEX_CMD_ENABLED", "0") == "1"
	c.CmdBindIP = c.text("IMEX_CMD_BIND_INTERFACE_IP", "")
	c.CmdUnixPath = c.text("IMEX_CMD_UNIX_DOMAIN_PATH", "")
	c.WaitForQuorum = c.text("IMEX_WAIT_FOR_QUORUM", "RECOVERY")
	switch c.WaitForQuorum {
	case "NONE", "RECOVERY", "FULL":
	default:
		return fmt.Errorf("IMEX_WAIT_FOR_QUORUM=%q is not NONE, RECOVERY or FULL", c.WaitForQuorum)
	}
	c.Encrypted = c.text("IMEX_ENABLE_AUTH_ENCRYPTION", "0") == "1"
	c.AuthMode = c.text("IMEX_AUTH_ENCRYPTION_MODE", "SSL_TLS")
	c.AuthSource = c.text("IMEX_AUTH_SOURCE", "")
	c.ServerKey, c.ServerCert = c.text("IMEX_SERVER_KEY", ""), c.text("IMEX_SERVER_CERT", "")
	c.ServerCertAuth = c.text("IMEX_SERVER_CERT_AUTH", "")
	c.ClientKey, c.ClientCert = c.text("IMEX_CLIENT_KEY", ""), c.text("IMEX_CLIENT_CERT", "")
	c.ClientCertAuth = c.text("IMEX_CLIENT_CERT_AUTH", "")
	c.TargetOverride = c.text("IMEX_SECURITY_TARGET_OVERRIDE", "")
	return nil
}

// ReadNodes returns the node list in order: an entry's position is its IMEX node ID.
func ReadNodes(path string) ([]string, error) {
	nodes, err := readLines(path)
	if err != nil {
		return nil, err
	}
	if len(nodes) == 0 {
		return nil, fmt.Errorf("%s lists no node", path)
	}
	return nodes, nil
}
