package main

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log"
	"net"
	"os"
	"sync"
	"time"

	"partita/simulator/imex/internal/imex"
)

// Timings of the real daemon: it tries each missing peer about once a second, and handles SIGUSR1 every 5 s at most.
const (
	retryInterval    = time.Second
	reloadInterval   = 5 * time.Second
	heartbeat        = time.Second
	heartbeatTimeout = 3 * time.Second
)

type peer struct {
	node     string
	status   string
	address  string
	attempts int
	lostAt   time.Time
	lines    *imex.Lines
	wake     chan struct{}
}

type daemon struct {
	config   *imex.Config
	nodes    []string // read once: the real daemon reads its node list at start only
	self     int
	hello    imex.Hello
	started  time.Time
	mutex    sync.Mutex
	peers    []*peer
	creds    *imex.Credentials
	faults   imex.Faults
	stopping bool
	reloaded time.Time
	inbound  map[*imex.Lines]bool
}

func newDaemon(config *imex.Config) (*daemon, error) {
	nodes, err := imex.ReadNodes(config.NodesFile)
	if err != nil {
		return nil, err
	}
	creds, err := imex.ReadCredentials(config)
	if err != nil {
		return nil, err
	}
	d := &daemon{config: config, nodes: nodes, started: time.Now(), creds: creds, inbound: map[*imex.Lines]bool{}}
	if err := d.identify(); err != nil {
		return nil, err
	}
	instance := make([]byte, 8)
	if _, err := rand.Read(instance); err != nil {
		return nil, err
	}
	d.hello = imex.Hello{
		Version: imex.Version, NodeMap: imex.MapKey(nodes), Node: d.self, Instance: hex.EncodeToString(instance),
	}
	for _, node := range nodes {
		d.peers = append(d.peers, &peer{node: node, status: imex.NeverConnected, wake: make(chan struct{}, 1)})
	}
	return d, nil
}

// identify finds which entry of the node list this host is: the one whose address an interface has.
func (d *daemon) identify() error {
	local, err := imex.LocalAddresses()
	if err != nil {
		return err
	}
	for index, node := range d.nodes {
		address, err := imex.Resolve(node)
		if err != nil || (d.config.BindIP != "" && address != d.config.BindIP) {
			continue
		}
		if name, found := local[address]; found {
			d.self, d.config.BindIP = index, address
			log.Printf("[INFO] Identified this node as ID %d, using bind IP of '%s', and network interface of %s",
				index, address, name)
			return nil
		}
	}
	return fmt.Errorf("No matching network interface found for any IP addresses in the node configuration file %s",
		d.config.NodesFile)
}

// status decides the node's state from its start time, faults and connections.
func (d *daemon) status() imex.Status {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	hostName, err := os.Hostname()
	if err != nil {
		hostName = ""
	}
	status := imex.Status{Status: imex.Ready, Version: imex.Version, HostName: hostName, Node: d.self}
	complete := true
	for _, each := range d.peers {
		grace := time.Duration(d.config.GraceSeconds) * time.Second
		if each.status == imex.Recovering && d.config.GraceSeconds >= 0 && time.Since(each.lostAt) >= grace {
			each.status = imex.Disconnected
		}
		status.Connections = append(status.Connections, each.status)
		status.Addresses = append(status.Addresses, each.address)
		complete = complete && each.status == imex.Connected
	}
	switch {
	case d.stopping:
		status.Status = imex.ShuttingDown
	case time.Since(d.started) < d.faults.ReadyDelay:
		status.Status = imex.Initializing
	case d.config.WaitForQuorum == "FULL" && !complete:
		status.Status = imex.WaitingForPeers
	}
	return status
}

func (d *daemon) hanging() bool {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	return d.faults.Hang
}

// watchFaults applies what the faults file says, within a quarter of a second.
func (d *daemon) watchFaults() {
	for {
		faults := imex.ReadFaults()
		if faults.Die {
			log.Printf("[ERROR] told to die")
			os.Exit(1)
		}
		d.mutex.Lock()
		changed := faults != d.faults
		d.faults = faults
		d.mutex.Unlock()
		if changed && (faults.Hang || faults.Degraded) {
			d.dropConnections()
		}
		time.Sleep(250 * time.Millisecond)
	}
}

func (d *daemon) dropConnections() {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	for _, each := range d.peers {
		if each.lines != nil {
			each.lines.Close()
		}
	}
	for lines := range d.inbound {
		lines.Close()
	}
}

// reload is SIGUSR1: read the credentials again and restart all outgoing connections; names are resolved anew.
func (d *daemon) reload() {
	if time.Since(d.reloaded) < reloadInterval {
		log.Printf("[INFO] Ignoring SIGUSR1, the last one was less than 5 seconds ago")
		return
	}
	d.reloaded = time.Now()
	creds, err := imex.ReadCredentials(d.config)
	if err != nil {
		log.Printf("[ERROR] Keeping the old credentials: %v", err)
		creds = d.creds
	}
	log.Printf("[INFO] Restarting all client connections")
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.creds = creds
	for _, each := range d.peers {
		select {
		case each.wake <- struct{}{}:
		default:
		}
	}
}

// stop is SIGTERM: tell the peers, so that they need not wait for a time-out.
func (d *daemon) stop() {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.stopping = true
	log.Printf("[INFO] Shutting down")
	for _, each := range d.peers {
		if each.lines != nil {
			if err := each.lines.Send(imex.Hello{Node: d.self, Bye: true}, 100*time.Millisecond); err != nil {
				log.Printf("[INFO] Could not tell node %s: %v", each.node, err)
			}
		}
	}
}

func listen(address string, port int) (net.Listener, error) {
	return net.Listen("tcp", net.JoinHostPort(address, fmt.Sprint(port)))
}
