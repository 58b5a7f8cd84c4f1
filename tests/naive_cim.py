"""Slow twins of the coherent Ising machines: one run, one spin at a time, from the equations.

Each takes the state before a step, the injected field of every spin as a function of amplitudes,
the fraction ``t`` of the run that is over and the step's draws, and returns the state after it.
"""

import math


def line(t, start, end, until):
    return end if t >= until else start + (end - start) * t / until


def bounded(value, low, high):
    return min(max(value, low), high)


def mean_field(x, inject, t, draws, dt, gain, sigma):
    r = line(t, *gain, 0.9)
    bound = 3 * math.sqrt(max(1.0, gain[1]))
    out = []
    for i in range(len(x)):
        drift = (r - x[i] ** 2) * x[i] + inject(x)[i]
        new = x[i] + drift * dt + sigma * math.sqrt(dt) * draws[i]
        out.append(bounded(new, -bound, bound))
    return out


def amplitude_corrected(x, e, inject, t, dt, gain, rate, target):
    r, alpha = line(t, *gain, 0.9), line(t, *target, 0.9)
    bound = 1.5 * math.sqrt(alpha)
    new_x, new_e = [], []
    for i in range(len(x)):
        x_dot = (r - x[i] ** 2) * x[i] + e[i] * inject(x)[i]
        e_dot = -rate * e[i] * (x[i] ** 2 - alpha)
        new_x.append(bounded(x[i] + dt * x_dot, -bound, bound))
        new_e.append(bounded(e[i] + dt * e_dot, 1e-3, 1e3))
    return new_x, new_e


def chaotic_feedback(x, e, inject, t, dt, gain, rate, target):
    r, alpha = line(t, *gain, 0.9), line(t, *target, 0.9)
    bound = 1.5 * math.sqrt(alpha)
    new_x, new_e = [], []
    for i in range(len(x)):
        z = e[i] * inject(x)[i]
        new_x.append(bounded(x[i] + dt * ((r - x[i] ** 2) * x[i] + z), -bound, bound))
        new_e.append(bounded(e[i] - dt * rate * e[i] * (z**2 - alpha), 1e-3, 1e3))
    return new_x, new_e


def separated_feedback(x, e, inject, t, dt, gain, k, rate, slope):
    r, beta, c = line(t, *gain, 0.9), line(t, *rate, 1.0), line(t, *slope, 1.0)
    new_x, new_e = [], []
    for i in range(len(x)):
        field = inject(x)[i]
        x_dot = (r - x[i] ** 2) * x[i] + math.tanh(c * field) + k * (field - e[i])
        new_x.append(bounded(x[i] + dt * x_dot, -1.5, 1.5))
        new_e.append(e[i] - dt * beta * (e[i] - field))
    return new_x, new_e


def gaussian_state(x, s, inject, t, draws, dt, gain, g, j):
    r = line(t, *gain, 0.9)
    bound = 3 * math.sqrt(max(1.0, gain[1]))
    dW = [math.sqrt(dt) * draw for draw in draws]
    measured = [x[i] + g * dW[i] / dt / math.sqrt(4 * j) for i in range(len(x))]
    new_x, new_s = [], []
    for i in range(len(x)):
        x_dot = (r - x[i] ** 2) * x[i] + inject(measured)[i]
        s_dot = (
            2 * (r - 3 * x[i] ** 2) * s[i] - 2 * j * (s[i] - 0.5) ** 2 + (1 + j) + 2 * x[i] ** 2
        )
        kick = g * math.sqrt(j) * (s[i] - 0.5) * dW[i]
        new_x.append(bounded(x[i] + dt * x_dot + kick, -bound, bound))
        new_s.append(bounded(s[i] + dt * s_dot, 1e-3, 1e3))
    return new_x, new_s
