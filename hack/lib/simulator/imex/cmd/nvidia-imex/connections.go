package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net"
	"time"

	"partita/simulator/imex/internal/imex"
)

// connect keeps one outgoing connection to a node of the list, itself included, for as long as the daemon lives.
func (d *daemon) connect(index int) {
	each := d.peers[index]
	for {
		if !d.hanging() {
			err := d.hold(index, each)
			if errors.Is(err, errRestart) {
				continue
			}
			if err != nil && each.attempts < 2 {
				log.Printf("[INFO] Connection to node %d - %s: %v", index, each.node, err)
			}
		}
		select {
		case <-each.wake:
		case <-time.After(retryInterval):
		}
	}
}

// hold connects once and returns when that connection ends.
func (d *daemon) hold(index int, each *peer) error {
	each.attempts++
	address, err := imex.Resolve(each.node)
	if err != nil {
		return err
	}
	d.mutex.Lock()
	creds, hello := d.creds, d.hello
	d.mutex.Unlock()
	conn, err := dial(address, each.node, d.config, creds)
	if err != nil {
		return err
	}
	lines := imex.NewLines(conn)
	defer lines.Close()
	var answer imex.Hello
	if err := lines.Send(hello, heartbeatTimeout); err != nil {
		return err
	}
	if err := lines.Receive(&answer, heartbeatTimeout); err != nil {
		return err
	}
	if answer.Refused != "" {
		d.set(each, answer.Refused, address, nil)
		return fmt.Errorf("refused: %s", answer.Refused)
	}
	if answer.Node != index {
		d.set(each, imex.MapMismatch, address, nil)
		return fmt.Errorf("%s says that it is node %d", address, answer.Node)
	}
	d.set(each, imex.Connected, address, lines)
	each.attempts = 0
	log.Printf("[INFO] Connection established to node %d - %s:%d", index, each.node, d.config.ServerPort)
	err = d.keepAlive(each, lines)
	if errors.Is(err, errRestart) {
		return err
	}
	log.Printf("[ERROR] Node disconnect event detected for node %d - %s: %v", index, each.node, err)
	d.set(each, imex.Recovering, address, nil)
	return err
}

var errRestart = errors.New("told to restart the connection")

func (d *daemon) keepAlive(each *peer, lines *imex.Lines) error {
	for {
		if d.hanging() {
			return fmt.Errorf("told to hang")
		}
		var pong imex.Hello
		if err := lines.Send(imex.Hello{Node: d.self}, heartbeatTimeout); err != nil {
			return err
		}
		if err := lines.Receive(&pong, heartbeatTimeout); err != nil {
			return err
		}
		if pong.Bye {
			return fmt.Errorf("the node shuts down")
		}
		select {
		case <-each.wake:
			return errRestart
		case <-time.After(heartbeat):
		}
	}
}

func (d *daemon) set(each *peer, status, address string, lines *imex.Lines) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	if status == imex.Recovering {
		each.lostAt = time.Now()
	}
	each.status, each.address, each.lines = status, address, lines
}

func dial(address, name string, config *imex.Config, creds *imex.Credentials) (net.Conn, error) {
	target := net.JoinHostPort(address, fmt.Sprint(config.ServerPort))
	dialer := &net.Dialer{Timeout: heartbeatTimeout}
	if creds == nil {
		return dialer.Dial("tcp", target)
	}
	settings := creds.Client.Clone()
	if settings.ServerName == "" {
		settings.ServerName = name
	}
	return tls.DialWithDialer(dialer, "tcp", target, settings)
}

// accept serves peers. A daemon that encrypts speaks to no daemon that does not.
func (d *daemon) accept(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			log.Printf("[ERROR] accept: %v", err)
			time.Sleep(heartbeat)
			continue
		}
		d.mutex.Lock()
		if d.creds != nil {
			conn = tls.Server(conn, d.creds.Server)
		}
		d.mutex.Unlock()
		go d.serve(imex.NewLines(conn))
	}
}

func (d *daemon) serve(lines *imex.Lines) {
	defer lines.Close()
	var theirs imex.Hello
	if d.hanging() || lines.Receive(&theirs, heartbeatTimeout) != nil {
		return
	}
	answer := d.hello
	d.mutex.Lock()
	switch {
	case theirs.Version != d.hello.Version:
		answer.Refused = imex.VersionMismatch
	case theirs.NodeMap != d.hello.NodeMap:
		answer.Refused = imex.MapMismatch
	case d.faults.Degraded && theirs.Node != d.self:
		answer.Refused = imex.Invalid
	}
	d.inbound[lines] = true
	d.mutex.Unlock()
	defer func() {
		d.mutex.Lock()
		delete(d.inbound, lines)
		d.mutex.Unlock()
	}()
	if lines.Send(answer, heartbeatTimeout) != nil || answer.Refused != "" {
		return
	}
	for !d.hanging() {
		var ping imex.Hello
		if lines.Receive(&ping, heartbeatTimeout) != nil || ping.Bye {
			return
		}
		if lines.Send(imex.Hello{Node: d.self}, heartbeatTimeout) != nil {
			return
		}
	}
}
