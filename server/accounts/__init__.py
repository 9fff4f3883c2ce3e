"""Who may do what: administrators, enrolment, agents' credentials, the policy, the audit."""
