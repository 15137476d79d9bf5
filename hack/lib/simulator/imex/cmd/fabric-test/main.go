// fabric-test stands in for a job that shares GPU memory between two pods: it succeeds only where a real one could.
// Each side needs an IMEX channel and an IMEX daemon that is connected to the other's, in one domain and one clique.
//
//	fabric-test check                       this container alone
//	fabric-test serve [-port 7070]          one side: answers until it is ended
//	fabric-test connect HOST[:PORT]         the other side: exits 0 when memory could be shared
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"partita/simulator/imex/internal/imex"
)

// evidence is what a container can see of its part in a domain.
type evidence struct {
	Host      string   `json:"host"`
	Channels  []string `json:"channels"`
	Domain    string   `json:"computeDomain"`
	Clique    string   `json:"cliqueID"`
	Node      string   `json:"node"`
	Index     *int     `json:"index"`
	Ready     bool     `json:"ready"`
	Message   string   `json:"message"`
	Connected []int    `json:"connected"`
}

var (
	devices = flag.String("devices", "/dev/nvidia-caps-imex-channels", "folder of IMEX channels")
	status  = flag.String("status", "/run/partita/compute-domain/status.json", "what this node's IMEX daemon says")
	port    = flag.Int("port", 7070, "TCP port of `serve`")
	wait    = flag.Duration("wait", 0, "try again for so long")
)

func main() {
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: fabric-test [options] check | serve | connect HOST[:PORT]")
		flag.PrintDefaults()
	}
	flag.Parse()
	if err := run(flag.Args()); err != nil {
		fmt.Fprintf(os.Stderr, "FAIL %v\n", err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	switch {
	case len(arguments) == 1 && arguments[0] == "check":
		return persist(func() error {
			own, err := look()
			if err == nil {
				fmt.Printf("OK %s: %s of domain %s, clique %s\n", own.Host, strings.Join(own.Channels, " "), own.Domain, own.Clique)
			}
			return err
		})
	case len(arguments) == 1 && arguments[0] == "serve":
		return serve()
	case len(arguments) == 2 && arguments[0] == "connect":
		return persist(func() error { return connect(arguments[1]) })
	}
	flag.Usage()
	return fmt.Errorf("unknown command %q", strings.Join(arguments, " "))
}

func persist(attempt func() error) error {
	deadline := time.Now().Add(*wait)
	for {
		err := attempt()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// look collects the evidence of this container; an error where something is missing.
func look() (evidence, error) {
	var own evidence
	host, err := os.Hostname()
	if err != nil {
		return own, err
	}
	entries, err := filepath.Glob(filepath.Join(*devices, "channel*"))
	if err != nil {
		return own, err
	}
	var channels []string
	for _, entry := range entries {
		info, err := os.Stat(entry)
		if err == nil && info.Mode()&os.ModeCharDevice != 0 {
			channels = append(channels, filepath.Base(entry))
		}
	}
	if len(channels) == 0 {
		return own, fmt.Errorf("%s: there is no IMEX channel in %s", host, *devices)
	}
	data, err := os.ReadFile(*status)
	if err != nil {
		return own, fmt.Errorf("%s: no IMEX daemon of this node is known: %w", host, err)
	}
	if err := json.Unmarshal(data, &own); err != nil {
		return own, fmt.Errorf("%s: %w", *status, err)
	}
	own.Host, own.Channels = host, channels
	if own.Index == nil || !own.Ready {
		return own, fmt.Errorf("%s: the IMEX daemon of node %s is not ready: %s", host, own.Node, own.Message)
	}
	return own, nil
}

// judge says why memory could not be shared between the two.
func judge(own, other evidence) error {
	switch {
	case other.Index == nil:
		return fmt.Errorf("%s: %s", other.Host, other.Message)
	case own.Domain != other.Domain:
		return fmt.Errorf("%s is of ComputeDomain %s, %s of %s", own.Host, own.Domain, other.Host, other.Domain)
	case own.Clique != other.Clique:
		return fmt.Errorf("%s is in clique %s, %s in %s", own.Host, own.Clique, other.Host, other.Clique)
	case own.Node == other.Node:
		return nil
	case !slices.Contains(own.Connected, *other.Index):
		return fmt.Errorf("the IMEX daemon of %s is not connected to that of %s", own.Node, other.Node)
	case !slices.Contains(other.Connected, *own.Index):
		return fmt.Errorf("the IMEX daemon of %s is not connected to that of %s", other.Node, own.Node)
	}
	return nil
}

func serve() error {
	listener, err := net.Listen("tcp", fmt.Sprintf(":%d", *port))
	if err != nil {
		return err
	}
	fmt.Printf("serving on port %d\n", *port)
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		lines := imex.NewLines(conn)
		own, err := look()
		if err != nil {
			own = evidence{Host: own.Host, Message: err.Error()}
		}
		if err := lines.Send(own, 5*time.Second); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		lines.Close()
	}
}

func connect(target string) error {
	own, err := look()
	if err != nil {
		return err
	}
	if _, _, err := net.SplitHostPort(target); err != nil {
		target = net.JoinHostPort(target, fmt.Sprint(*port))
	}
	conn, err := net.DialTimeout("tcp", target, 5*time.Second)
	if err != nil {
		return err
	}
	lines := imex.NewLines(conn)
	defer lines.Close()
	var other evidence
	if err := lines.Receive(&other, 5*time.Second); err != nil {
		return err
	}
	if err := judge(own, other); err != nil {
		return err
	}
	fmt.Printf("OK %s (node %s) and %s (node %s) share memory in domain %s\n",
		own.Host, own.Node, other.Host, other.Node, own.Domain)
	return nil
}
