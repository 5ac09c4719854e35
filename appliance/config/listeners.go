package config

import (
	"crypto/x509"
	"fmt"
	"net"
	"net/url"
)

// listeners checks where devices and operators connect, and who signs for
// operators.
func (l *loader) listeners() {
	c := l.c
	l.address("devices.listen", c.Devices.Listen)
	if c.Devices.URL != "" {
		u, err := url.Parse(c.Devices.URL)
		if err != nil || u.Scheme != "https" || u.Host == "" || u.RawQuery != "" {
			l.fault("devices.url", "has to be an https URL: nothing speaks plain HTTP", "")
		}
	}
	if c.Devices.ConnsPerSource < 0 || c.Devices.MaxConns < 0 || c.Devices.BrokenPerMinute < 0 || c.Devices.Handshakes < 0 {
		l.fault("devices", "limits are not negative", "")
	}
	if l.need("operators.socket", c.Operators.Socket) {
		l.abs(&c.Operators.Socket)
		const sunPath = 107 // octets that a Unix address can hold
		if len(c.Operators.Socket) > sunPath {
			l.fault("operators.socket", fmt.Sprintf("the path is longer than the %d octets that a socket can have", sunPath), "")
		}
	}
	if c.Operators.Listen != "" {
		l.address("operators.listen", c.Operators.Listen)
	} else if c.Operators.CA == "" {
		return
	}
	if ca := l.certificate("operators.ca", c.Operators.CA); ca != nil {
		for _, i := range c.Issuers {
			if i.vouchedFor(ca) {
				l.fault("operators.ca", "is the devices' CA, or above it: each device would be an operator", "")
				break
			}
		}
		c.OperatorCA = x509.NewCertPool()
		c.OperatorCA.AddCert(ca)
	}
}

func (l *loader) address(path, addr string) {
	if !l.need(path, addr) {
		return
	}
	if _, port, err := net.SplitHostPort(addr); err != nil || port == "" {
		l.fault(path, "has to be address:port, such as 10.1.2.3:8443 or :8443", "")
	}
}
