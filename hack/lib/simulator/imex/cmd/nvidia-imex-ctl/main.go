// nvidia-imex-ctl stands in for NVIDIA's tool of that name: it asks the command services of one or all IMEX daemons.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"partita/simulator/imex/internal/imex"
)

type connection struct {
	Host    string `json:"host"`
	Status  string `json:"status"`
	Changed bool   `json:"changed"`
}

type node struct {
	Status      string                `json:"status"`
	Host        string                `json:"host"`
	HostName    string                `json:"hostName,omitempty"`
	Connections map[string]connection `json:"connections"`
	Changed     bool                  `json:"changed"`
	Version     string                `json:"version"`
}

type domain struct {
	Nodes     map[string]node `json:"nodes"`
	Timestamp string          `json:"timestamp"`
	Status    string          `json:"status"`
}

type options struct {
	config, unix               string
	query, all, monitor, names bool
	asJSON                     bool
}

func main() {
	var o options
	flag.StringVar(&o.config, "c", "/etc/nvidia-imex/config.cfg", "nvidia-imex configuration file")
	flag.StringVar(&o.unix, "u", "", "unix domain socket of the command service")
	flag.BoolVar(&o.query, "q", false, "state of the local daemon")
	flag.BoolVar(&o.all, "N", false, "state of the entire IMEX domain")
	flag.BoolVar(&o.monitor, "n", false, "monitor the entire IMEX domain continuously")
	flag.BoolVar(&o.names, "H", false, "show host names")
	flag.BoolVar(&o.asJSON, "j", false, "JSON output for -n and -N")
	flag.Parse()
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(o options) error {
	if o.unix != "" {
		return query("unix", o.unix)
	}
	config, err := imex.ReadConfig(o.config)
	if err != nil {
		return err
	}
	if !config.CmdEnabled {
		return fmt.Errorf("the command service is not enabled in %s", o.config)
	}
	switch {
	case o.query && config.CmdPort == 0:
		return query("unix", config.CmdUnixPath)
	case o.query:
		host := config.CmdBindIP
		if host == "" {
			host = "127.0.0.1"
		}
		return query("tcp", net.JoinHostPort(host, fmt.Sprint(config.CmdPort)))
	case o.all:
		return show(config, o, nil)
	case o.monitor:
		return monitor(config, o)
	}
	return fmt.Errorf("one of -q, -N, -n is needed")
}

func ask(network, address string) (imex.Status, error) {
	var status imex.Status
	conn, err := net.DialTimeout(network, address, time.Second)
	if err != nil {
		return status, err
	}
	lines := imex.NewLines(conn)
	defer lines.Close()
	return status, lines.Receive(&status, 5*time.Second)
}

func query(network, address string) error {
	status, err := ask(network, address)
	if err != nil {
		return fmt.Errorf("could not connect to the IMEX command service: %w", err)
	}
	fmt.Println(status.Status)
	return nil
}

// observe asks every node of the list at once. One that does not answer is UNAVAILABLE, its connections INVALID.
func observe(config *imex.Config, names bool) (domain, error) {
	list, err := imex.ReadNodes(config.NodesFile)
	if err != nil {
		return domain{}, err
	}
	answers := make([]chan node, len(list))
	for index, name := range list {
		answers[index] = make(chan node, 1)
		go func() { answers[index] <- observeNode(config, list, name, names) }()
	}
	seen := domain{Nodes: map[string]node{}, Timestamp: time.Now().Format("1/2/2006 15:04:05.000")}
	ready, connected := 0, true
	for index := range list {
		each := <-answers[index]
		seen.Nodes[fmt.Sprint(index)] = each
		if each.Status == imex.Ready {
			ready++
		}
		for _, link := range each.Connections {
			connected = connected && link.Status == imex.Connected
		}
	}
	switch {
	case ready == 0:
		seen.Status = "DOWN"
	case ready == len(list) && connected:
		seen.Status = "UP"
	default:
		seen.Status = "DEGRADED"
	}
	return seen, nil
}

func observeNode(config *imex.Config, list []string, name string, names bool) node {
	seen := node{Status: imex.Unavailable, Host: name, Connections: map[string]connection{}, Changed: true}
	for index, host := range list {
		seen.Connections[fmt.Sprint(index)] = connection{Host: host, Status: imex.Invalid, Changed: true}
	}
	address, err := imex.Resolve(name)
	if err != nil {
		return seen
	}
	status, err := ask("tcp", net.JoinHostPort(address, fmt.Sprint(config.CmdPort)))
	if err != nil {
		return seen
	}
	seen.Status, seen.Version = status.Status, status.Version
	if names {
		seen.HostName = status.HostName
	}
	for index, link := range status.Connections {
		host := name
		if index < len(list) {
			host = list[index]
		}
		if status.Addresses[index] != "" {
			host = status.Addresses[index]
		}
		seen.Connections[fmt.Sprint(index)] = connection{Host: host, Status: link, Changed: true}
	}
	return seen
}

func show(config *imex.Config, o options, previous *string) error {
	time.Sleep(imex.ReadFaults().DomainDelay)
	seen, err := observe(config, o.names)
	if err != nil {
		return err
	}
	stamp := seen.Timestamp
	if previous != nil {
		seen.Timestamp = ""
		key, err := json.Marshal(seen)
		if err != nil {
			return err
		}
		if string(key) == *previous {
			return nil
		}
		*previous, seen.Timestamp = string(key), stamp
	}
	if o.asJSON {
		data, err := json.MarshalIndent(seen, "", "  ")
		if err != nil {
			return err
		}
		fmt.Println(string(data))
		return nil
	}
	fmt.Print(table(seen))
	return nil
}

func monitor(config *imex.Config, o options) error {
	previous := ""
	for {
		if err := show(config, o, &previous); err != nil {
			return err
		}
		time.Sleep(time.Second)
	}
}

var letters = map[string]string{
	imex.Invalid: "I", imex.NeverConnected: "N", imex.Recovering: "R", imex.Disconnected: "D", imex.Connected: "C",
	imex.VersionMismatch: "!V!", imex.MapMismatch: "!M!",
}

func table(seen domain) string {
	var out strings.Builder
	out.WriteString("Connectivity Table Legend:\nI - Invalid - Node wasn't reachable, no connection status available\n" +
		"N - Never Connected\nR - Recovering\nD - Disconnected\n!V! - Version mismatch\n!M! - Node map mismatch\n" +
		"C - Connected - Ready for operation\n\n")
	fmt.Fprintf(&out, "%s\nNodes:\n", seen.Timestamp)
	for index := range len(seen.Nodes) {
		each := seen.Nodes[fmt.Sprint(index)]
		fmt.Fprintf(&out, "Node #%-3d - %-15s - %-20s - Version: %s\n", index, each.Host, each.Status, each.Version)
	}
	out.WriteString("\n Nodes From\\To")
	for index := range len(seen.Nodes) {
		fmt.Fprintf(&out, "  %-3d", index)
	}
	for index := range len(seen.Nodes) {
		fmt.Fprintf(&out, "\n       %-7d", index)
		for to := range len(seen.Nodes) {
			fmt.Fprintf(&out, "  %-3s", letters[seen.Nodes[fmt.Sprint(index)].Connections[fmt.Sprint(to)].Status])
		}
	}
	fmt.Fprintf(&out, "\nDomain State: %s\n", seen.Status)
	return out.String()
}
