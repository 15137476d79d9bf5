package imex

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

// Resolve turns an entry of the node list into an IP address. The hosts file is read at every call, as getaddrinfo
// does, because Go's own resolver would cache it for seconds; other names are asked of DNS.
func Resolve(name string) (string, error) {
	if net.ParseIP(name) != nil {
		return name, nil
	}
	lines, err := readLines(hostsFile())
	if err == nil {
		for _, line := range lines {
			fields := strings.Fields(strings.SplitN(line, "#", 2)[0])
			for _, host := range fields[min(1, len(fields)):] {
				if strings.EqualFold(host, name) {
					return fields[0], nil
				}
			}
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupHost(ctx, name)
	if err != nil || len(addresses) == 0 {
		return "", fmt.Errorf("cannot resolve %s: %v", name, err)
	}
	return addresses[0], nil
}

func hostsFile() string {
	if path := os.Getenv("IMEX_SIMULATOR_HOSTS"); path != "" {
		return path
	}
	return "/etc/hosts"
}

// LocalAddresses maps every address of this host to its interface.
func LocalAddresses() (map[string]string, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	local := map[string]string{}
	for _, each := range interfaces {
		addresses, err := each.Addrs()
		if err != nil {
			return nil, err
		}
		for _, address := range addresses {
			if network, ok := address.(*net.IPNet); ok {
				local[network.IP.String()] = each.Name
			}
		}
	}
	return local, nil
}
